"""One 720p camera: ``python camera_process.py NAME RATE SECONDS FILE``; FILE says what was sent."""

from __future__ import annotations

import array
import json
import sys
import time
from pathlib import Path

import numpy as np
import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

HEIGHT, WIDTH = 720, 1280


def images() -> list[Image]:
    """A few different pictures, ready to be sent again and again."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    made = []
    for shift in (0, 40, 80):
        pixels = np.stack([rows // 3 + shift, columns // 6, (rows + columns) // 9], -1)
        data = array.array("B", pixels.astype(np.uint8).tobytes())
        made.append(Image(height=HEIGHT, width=WIDTH, encoding="rgb8", step=WIDTH * 3, data=data))
        made[-1].header.frame_id = "optical"
    return made


def main() -> None:
    """Sends for so many seconds, then writes how many images and at which rate."""
    name, rate, seconds, file = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
    rclpy.init()
    node = rclpy.create_node(f"driver_{name}")
    # As camera drivers publish; the transport may lose images, which the run counts by itself.
    qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    publisher = node.create_publisher(Image, f"{name}/image_raw", qos)
    ready = images()
    while not publisher.get_subscription_count():
        time.sleep(0.1)
    time.sleep(0.5)
    begun, sent = time.monotonic(), 0
    due = begun
    while (now := time.monotonic()) < begun + seconds:
        if now < due:
            time.sleep(due - now)
        due = max(due + 1.0 / rate, time.monotonic() - 1.0 / rate)
        message = ready[sent % len(ready)]
        nanoseconds = time.time_ns()
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(nanoseconds, 10**9)
        publisher.publish(message)
        sent += 1
    took = time.monotonic() - begun
    Path(file).write_text(json.dumps({"sent": sent, "rate": sent / took}))
    rclpy.try_shutdown()


if __name__ == "__main__":
    main()
