"""The demo: its pictures, and the processes of a small ROS graph that they travel through."""
