"""From the image plane to the world: obstacle points and the occupancy grid around the robot."""
