"""The ROS 2 side: the lifecycle node, its parameters, inputs and outputs."""
