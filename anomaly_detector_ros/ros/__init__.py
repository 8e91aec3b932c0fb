"""The ROS 2 side: node, message conversion, player and recorder."""
