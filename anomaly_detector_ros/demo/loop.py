"""Images of 720p through the middleware alone: ``python -m anomaly_detector_ros.demo.loop``.

One process a camera sends at 30 Hz as drivers do; this one receives as the node does, and writes as
JSON what was sent and received, and how old images were when they came.
"""

from __future__ import annotations

import argparse
import array
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from anomaly_detector_ros.demo.processes import ProcessGroup

MODULE = "anomaly_detector_ros.demo.loop"
HEIGHT, WIDTH, RATE = 720, 1280, 30.0
CAMERA = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
DISCOVERY = 20.0


def _name(topic: str) -> str:
    return topic.replace("/", "_")


def send(topic: str, seconds: float) -> int:
    """Sends once somebody listens. Returns how many images."""
    node = rclpy.create_node(f"loop_{_name(topic)}")
    publisher = node.create_publisher(Image, topic, CAMERA)
    data = array.array("B", bytes(HEIGHT * WIDTH * 3))
    message = Image(height=HEIGHT, width=WIDTH, encoding="rgb8", step=WIDTH * 3, data=data)
    deadline = time.monotonic() + DISCOVERY
    while not publisher.get_subscription_count() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    begun, sent = time.monotonic(), 0
    while (now := time.monotonic()) < begun + seconds:
        due = begun + sent / RATE
        if now < due:
            time.sleep(due - now)
        stamp = time.time_ns()
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 10**9)
        publisher.publish(message)
        sent += 1
    return sent


def receive(topics: list[str], seconds: float) -> dict[str, Any]:
    """Receives what processes of its own send."""
    node = rclpy.create_node("loop")
    ages: list[float] = []

    def arrived(image: Image) -> None:
        stamp = image.header.stamp.sec * 10**9 + image.header.stamp.nanosec
        ages.append((time.time_ns() - stamp) * 1e-9)

    for topic in topics:
        node.create_subscription(Image, topic, arrived, CAMERA)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    with (
        tempfile.TemporaryDirectory(prefix="loop_") as folder,
        ProcessGroup(os.environ, Path(folder)) as senders,
    ):
        for topic in topics:
            senders.start(_name(topic), MODULE, "--send", topic, "--seconds", str(seconds))
        deadline = time.monotonic() + seconds + DISCOVERY
        while (
            any(senders.running(_name(topic)) for topic in topics) and time.monotonic() < deadline
        ):
            executor.spin_once(timeout_sec=0.1)
        sent = [senders.output(_name(topic)).strip() for topic in topics]
    percentiles = np.percentile(ages, (50, 95)).tolist() if ages else []
    return {
        "cameras": len(topics),
        "sent": sum(int(each) for each in sent if each.isdecimal()),
        "received": len(ages),
        "latency": dict(zip(("median", "p95"), percentiles, strict=False)),
    }


def main(args: list[str] | None = None) -> int:
    """Sends one camera's images, or receives those of several. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="loop", description=__doc__.splitlines()[0])
    parser.add_argument("--cameras", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--send", metavar="TOPIC")
    options = parser.parse_args(args)
    rclpy.init(args=[])
    if options.send:
        print(send(options.send, options.seconds))
    else:
        topics = [f"camera_{index}/image_raw" for index in range(options.cameras)]
        print(json.dumps(receive(topics, options.seconds)))
    rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
