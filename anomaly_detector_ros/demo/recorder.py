"""Records topics into a bag and sums them up: ``python -m anomaly_detector_ros.demo.recorder``.

Does without rosbag2: the serialised messages go into an MCAP bag through the rosbags library.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import shutil
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.imaging.rendering import IMAGE_OUTPUTS
from anomaly_detector_ros.runtime.files import replace_file

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
INFO, DIAGNOSTICS = "sensor_msgs/msg/CameraInfo", "diagnostic_msgs/msg/DiagnosticArray"
DIAGNOSTICS_TOPIC = "/diagnostics"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="recorder", description=__doc__.splitlines()[0])
    made.add_argument("output", type=Path, help="bag directory to make")
    made.add_argument("--summary", type=Path, help="JSON file of counts and latencies to write")
    made.add_argument("--camera", help="record this camera's input and outputs, and /diagnostics")
    made.add_argument(
        "--node", default="/anomaly_detector", help="full name of the detector's node"
    )
    made.add_argument("--transport", default="raw", choices=("raw", "compressed"))
    made.add_argument(
        "--topic",
        action="append",
        default=[],
        metavar="NAME=TYPE",
        help="record this topic too, as in /camera/depth=sensor_msgs/msg/Image",
    )
    made.add_argument(
        "--wait",
        type=float,
        default=0.0,
        help="seconds to wait at most, before 'recording' is printed, until the detector's node "
        "is found on every topic it publishes",
    )
    made.add_argument("--frames", type=int, help="stop after as many messages on --count-topic")
    made.add_argument("--count-topic", help="default: the camera's heatmap, else the first topic")
    made.add_argument("--idle", type=float, help="stop after as many seconds without any message")
    made.add_argument("--duration", type=float, help="stop after as many seconds")
    made.add_argument("--best-effort", action="store_true", help="match BEST_EFFORT publishers too")
    return made


def camera_topics(camera: str, node: str, transport: str = "raw") -> dict[str, str]:
    """Input and output topics of one camera of the detector and their types.

    Args:
        camera: the camera's name, relative to the node's namespace as for the node itself.
        node: the node's full name.
        transport: ``raw`` or ``compressed``.
    """
    compressed = transport == "compressed"
    source = f"{node.rpartition('/')[0]}/{camera}"
    image = f"{source}/image_raw" + ("/compressed" if compressed else "")
    topics = {image: COMPRESSED if compressed else IMAGE, f"{source}/camera_info": INFO}
    topics |= {f"{node}/{camera}/{output}": IMAGE for output in IMAGE_OUTPUTS}
    topics[f"{node}/{camera}/overlay/compressed"] = COMPRESSED
    topics[f"{node}/{camera}/camera_info"] = INFO
    topics[DIAGNOSTICS_TOPIC] = DIAGNOSTICS
    return topics


def header_stamp(data: bytes) -> int:
    """Stamp in nanoseconds of a serialised message that begins with a std_msgs/Header."""
    order = "<" if data[1] & 1 else ">"
    seconds, nanoseconds = struct.unpack_from(f"{order}iI", data, 4)
    return seconds * 1_000_000_000 + nanoseconds


class BagWriter:
    """An MCAP bag that appears under its name once it is complete.

    Raises:
        UserError: something of that name exists.
    """

    def __init__(self, path: Path) -> None:
        if path.exists():
            raise UserError(f"'{path}' exists already: give another name or remove it")
        self._path = path
        # The bag's file is named after its directory, so the name of the latter must be final.
        self._partial = path.with_name(f"{path.name}.partial")
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        self._types = get_typestore(Stores.ROS2_JAZZY)
        self._writer = Writer(
            self._partial / path.name, version=8, storage_plugin=StoragePlugin.MCAP
        )
        self._writer.open()
        self._connections: dict[str, Any] = {}

    def add(self, topic: str, message_type: str) -> None:
        """Announces a topic."""
        self._connections[topic] = self._writer.add_connection(
            topic, message_type, typestore=self._types
        )

    def write(self, topic: str, received: int, data: bytes) -> None:
        """Adds a serialised message, received at a time in nanoseconds."""
        self._writer.write(self._connections[topic], received, data)

    def close(self) -> None:
        """Completes the bag."""
        self._writer.close()
        os.replace(self._partial / self._path.name, self._path)
        self._partial.rmdir()


class Recorder:
    """Subscribes to topics, writes what comes and remembers when it came.

    Args:
        node: the node that subscribes.
        topics: type by topic name.
        bag: where messages go.
        best_effort: ask for BEST_EFFORT delivery instead of RELIABLE.
    """

    def __init__(
        self, node: Node, topics: dict[str, str], bag: BagWriter, best_effort: bool = False
    ) -> None:
        reliability = ReliabilityPolicy.BEST_EFFORT if best_effort else ReliabilityPolicy.RELIABLE
        qos = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=20, reliability=reliability)
        self._bag = bag
        self.stamps: dict[str, list[int]] = {topic: [] for topic in topics}
        self.received: dict[str, list[int]] = {topic: [] for topic in topics}
        self.last_message = time.monotonic()
        self._diagnostics = b""
        for topic, name in topics.items():
            bag.add(topic, name)

            def on_message(data: bytes, topic: str = topic) -> None:
                self._on_message(topic, data)

            node.create_subscription(_message_class(name), topic, on_message, qos, raw=True)

    def _on_message(self, topic: str, data: bytes) -> None:
        now = time.time_ns()
        self._bag.write(topic, now, data)
        self.received[topic].append(now)
        self.stamps[topic].append(header_stamp(data))
        if topic == DIAGNOSTICS_TOPIC:
            self._diagnostics = data  # comes all the time, so it is no sign of life
        else:
            self.last_message = time.monotonic()

    def summary(self) -> dict[str, Any]:
        """Counts, rates and latencies by topic, and the last diagnostics."""
        topics = {
            topic: _topic_summary(self.received[topic], self.stamps[topic])
            for topic in self.received
        }
        return {"topics": topics, "diagnostics": self._last_diagnostics()}

    def _last_diagnostics(self) -> dict[str, Any]:
        if not self._diagnostics:
            return {}
        message = deserialize_message(self._diagnostics, DiagnosticArray)
        return {
            status.name: {
                "level": int.from_bytes(status.level, "little"),
                "message": status.message,
                "values": {pair.key: pair.value for pair in status.values},
            }
            for status in message.status
        }


def _topic_summary(received: list[int], stamps: list[int]) -> dict[str, Any]:
    """Messages, rate in Hz and latency (reception minus header stamp) in seconds of one topic."""
    summary: dict[str, Any] = {"messages": len(received)}
    if len(received) > 1 and received[-1] > received[0]:
        summary["rate"] = (len(received) - 1) / ((received[-1] - received[0]) * 1e-9)
    if received:
        latency = (np.array(received) - np.array(stamps)) * 1e-9
        summary["latency"] = {
            "mean": float(latency.mean()),
            "median": float(np.median(latency)),
            "p95": float(np.percentile(latency, 95)),
            "max": float(latency.max()),
        }
    return summary


def _message_class(name: str) -> type:
    package, _, message = name.split("/")
    return getattr(importlib.import_module(f"{package}.msg"), message)


def _topics(options: argparse.Namespace) -> dict[str, str]:
    topics: dict[str, str] = {}
    if options.camera:
        topics |= camera_topics(options.camera, options.node, options.transport)
    for each in options.topic:
        topic, separator, name = each.partition("=")
        if not separator or name.count("/") != 2:
            raise UserError(f"'{each}' is no topic: write NAME=PACKAGE/msg/TYPE")
        topics[topic] = name
    if not topics:
        raise UserError("nothing to record: give --camera or --topic")
    return topics


def _count_topic(options: argparse.Namespace, topics: dict[str, str]) -> str:
    default = f"{options.node}/{options.camera}/heatmap" if options.camera else next(iter(topics))
    topic = options.count_topic or default
    if topic not in topics:
        raise UserError(f"--count-topic '{topic}' is not recorded: choose a recorded topic")
    return topic


def _wait_for_node(node: Node, topics: dict[str, str], options: argparse.Namespace) -> None:
    """Lets messages come in until the detector's topics have a publisher.

    Discovery can take seconds on a busy machine; what is published before is not recorded.

    Raises:
        UserError: a topic has none after ``options.wait`` seconds.
    """
    missing = [topic for topic in topics if topic.startswith(f"{options.node}/")]
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    deadline = time.monotonic() + options.wait
    while missing := [topic for topic in missing if not node.count_publishers(topic)]:
        if time.monotonic() > deadline:
            raise UserError(
                f"nobody publishes '{missing[0]}' after {options.wait:g} s: start the node first"
            )
        executor.spin_once(timeout_sec=0.1)
    executor.remove_node(node)


def _spin(node: Node, recorder: Recorder, options: argparse.Namespace, counted: str) -> None:
    """Records until SIGINT, SIGTERM or one of the limits of the command line."""
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    started = time.monotonic()
    with contextlib.suppress(ExternalShutdownException, KeyboardInterrupt):
        while rclpy.ok():
            executor.spin_once(timeout_sec=0.2)
            now = time.monotonic()
            if options.frames and len(recorder.received[counted]) >= options.frames:
                break
            if options.idle and now - recorder.last_message > options.idle:
                break
            if options.duration and now - started > options.duration:
                break


def _write_summary(path: Path, summary: dict[str, Any]) -> None:
    text = json.dumps(summary, indent=2) + "\n"
    replace_file(path, lambda partial: partial.write_text(text))


def main(args: list[str] | None = None) -> int:
    """Records until told to stop. Returns the exit code."""
    options = parser().parse_args(args)
    rclpy.init(args=[])
    try:
        topics = _topics(options)
        counted = _count_topic(options, topics)
        node = Node("recorder")
        bag = BagWriter(options.output)
        recorder = Recorder(node, topics, bag, options.best_effort)
        if options.wait:
            _wait_for_node(node, topics, options)
        print("recording", flush=True)
        _spin(node, recorder, options, counted)
        bag.close()
        if options.summary:
            _write_summary(options.summary, {"bag": str(options.output), **recorder.summary()})
        print(f"recorded {sum(map(len, recorder.received.values()))} messages", flush=True)
    except (UserError, OSError) as error:  # OSError: the disk is full, or not ours
        print(f"recorder: {one_line(error)}", file=sys.stderr)
        return 1
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
