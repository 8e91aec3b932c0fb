"""A subscriber of its own process: ``python listener.py TOPIC``; prints a line per image."""

from __future__ import annotations

import sys

import rclpy
from sensor_msgs.msg import Image


def main() -> None:
    """Listens, reliably, until a signal comes."""
    rclpy.init()
    node = rclpy.create_node("listener")
    node.create_subscription(Image, sys.argv[1], lambda image: print("image", flush=True), 10)
    rclpy.spin(node)


if __name__ == "__main__":
    main()
