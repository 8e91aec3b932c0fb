"""Records a camera's topics into a bag and sums them up.

``python -m anomaly_detector_ros.demo.recorder`` does without rosbag2: the serialised messages go
into an MCAP bag through the rosbags library.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.utilities import try_shutdown
from rosbags.rosbag2 import StoragePlugin, Writer
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from visualization_msgs.msg import MarkerArray

from anomaly_detector_ros.bags.outputs import CAMERA_INFO, OUTPUTS, header_stamp
from anomaly_detector_ros.demo.camera import BASE, OPTICAL
from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.mapping.poses import mounted
from anomaly_detector_ros.runtime.files import replace_file
from anomaly_detector_ros.sources.recordings import COMPRESSED, IMAGE, typestore

DIAGNOSTICS = "diagnostic_msgs/msg/DiagnosticArray"
CLOUD, MARKERS = "sensor_msgs/msg/PointCloud2", "visualization_msgs/msg/MarkerArray"
TRANSFORMS = "tf2_msgs/msg/TFMessage"
_TYPES = {
    IMAGE: Image,
    COMPRESSED: CompressedImage,
    CAMERA_INFO: CameraInfo,
    DIAGNOSTICS: DiagnosticArray,
    CLOUD: PointCloud2,
    MARKERS: MarkerArray,
}
_WITHOUT_STAMP = {MARKERS}
_QUEUE = 20


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="recorder", description=(__doc__ or "").splitlines()[0])
    made.add_argument("output", type=Path, help="bag directory to make")
    made.add_argument("--summary", type=Path, help="JSON file of counts and latencies to write")
    made.add_argument(
        "--camera", default="camera", help="record its input and outputs, and /diagnostics"
    )
    made.add_argument(
        "--node", default="/anomaly_detector", help="full name of the detector's node"
    )
    made.add_argument(
        "--height",
        type=float,
        help="metres of the camera above base_link, level: record the obstacles, too, and "
        "that pose as /tf_static",
    )
    made.add_argument("--transport", default="raw", choices=("raw", "compressed"))
    made.add_argument(
        "--wait",
        type=float,
        default=0.0,
        help="seconds to wait at most, before 'recording' is printed, until the detector's node "
        "is found on every topic it publishes",
    )
    return made


def camera_topics(
    camera: str, node: str, transport: str = "raw", *, space: bool = False
) -> dict[str, str]:
    """Input and output topics of one camera of the detector and their types.

    Args:
        camera: the camera's name, relative to the node's namespace as for the node itself.
        node: the node's full name.
        transport: ``raw`` or ``compressed``.
        space: the obstacles and their markers, too.
    """
    compressed = transport == "compressed"
    source = f"{node.rpartition('/')[0]}/{camera}"
    image = f"{source}/image_raw" + ("/compressed" if compressed else "")
    in_space = {
        f"{node}/{camera}/obstacles": CLOUD,
        f"{node}/{camera}/markers": MARKERS,
    }
    return {
        image: COMPRESSED if compressed else IMAGE,
        f"{source}/camera_info": CAMERA_INFO,
        **{f"{node}/{camera}/{output}": kind for output, kind in OUTPUTS.items()},
        "/diagnostics": DIAGNOSTICS,
        **(in_space if space else {}),
    }


class BagWriter:
    """An MCAP bag that appears under its name once it is complete; a context manager.

    What was recorded before an error stays in ``NAME.partial``.

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
        self._writer = Writer(
            self._partial / path.name, version=8, storage_plugin=StoragePlugin.MCAP
        )
        self._connections: dict[str, Any] = {}
        self._written = False

    def __enter__(self) -> BagWriter:
        """Open the bag."""
        self._writer.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Complete the bag, or close it where it is."""
        if error is None:
            self._writer.close()
            os.replace(self._partial / self._path.name, self._path)
            self._partial.rmdir()
            return
        with contextlib.suppress(Exception):  # the first error is the one to tell
            self._writer.close()
        if not self._written:
            shutil.rmtree(self._partial, ignore_errors=True)

    def add(self, topic: str, message_type: str) -> None:
        """Announces a topic."""
        self._connections[topic] = self._writer.add_connection(
            topic, message_type, typestore=typestore()
        )

    def write(self, topic: str, received: int, data: bytes) -> None:
        """Adds a serialised message, received at a time in nanoseconds."""
        self._writer.write(self._connections[topic], received, data)
        self._written = True


class Recorder:
    """Subscribes to topics, writes what comes and remembers when it came.

    A message that is too short for a header is left out, and told.

    Args:
        node: the node that subscribes.
        topics: type by topic name; those without a header have the time of their reception.
        bag: where messages go.
    """

    def __init__(self, node: Node, topics: dict[str, str], bag: BagWriter) -> None:
        self._bag = bag
        self.received: dict[str, list[tuple[int, int]]] = {topic: [] for topic in topics}
        for topic, name in topics.items():
            bag.add(topic, name)

            def on_message(data: bytes, topic: str = topic, name: str = name) -> None:
                self._on_message(topic, name, data)

            node.create_subscription(_TYPES[name], topic, on_message, _QUEUE, raw=True)

    def _on_message(self, topic: str, name: str, data: bytes) -> None:
        now = time.time_ns()
        try:
            stamp = now if name in _WITHOUT_STAMP else header_stamp(data)
        except ValueError as error:
            print(f"recorder: left out on '{topic}': {error}", file=sys.stderr)
            return
        self._bag.write(topic, now, data)
        self.received[topic].append((now, stamp))

    def summary(self) -> dict[str, Any]:
        """By topic: messages, rate in Hz, and latency from header stamp to reception in seconds."""
        return {topic: _summary(received) for topic, received in self.received.items()}


def _summary(received: list[tuple[int, int]]) -> dict[str, Any]:
    summary: dict[str, Any] = {"messages": len(received)}
    if received:
        latency = np.array([now - stamp for now, stamp in received]) * 1e-9
        summary["latency"] = {"median": float(np.median(latency)), "max": float(latency.max())}
    if len(received) > 1 and received[-1][0] > received[0][0]:
        summary["rate"] = (len(received) - 1) / ((received[-1][0] - received[0][0]) * 1e-9)
    return summary


def _static_transform(height: float) -> bytes:
    """What a robot's drivers publish as /tf_static: where the camera is.

    It is written into the bag only: tf2_msgs is not among the Python wheels of ROS.
    """
    turn = Rotation.from_matrix(mounted(height)[:3, :3]).as_quat()
    types = typestore().types
    sec, nanosec = divmod(time.time_ns(), 1_000_000_000)
    stamp = types["builtin_interfaces/msg/Time"](sec=sec, nanosec=nanosec)
    transform = types["geometry_msgs/msg/TransformStamped"](
        header=types["std_msgs/msg/Header"](stamp=stamp, frame_id=BASE),
        child_frame_id=OPTICAL,
        transform=types["geometry_msgs/msg/Transform"](
            translation=types["geometry_msgs/msg/Vector3"](x=0.0, y=0.0, z=height),
            rotation=types["geometry_msgs/msg/Quaternion"](**dict(zip("xyzw", turn, strict=True))),
        ),
    )
    message = types[TRANSFORMS](transforms=[transform])
    return bytes(typestore().serialize_cdr(message, TRANSFORMS))


def _wait_for_node(node: Node, topics: dict[str, str], detector: str, timeout: float) -> None:
    """Lets messages come in until the detector's topics have a publisher.

    Discovery can take seconds on a busy machine; what is published before is not recorded.

    Raises:
        UserError: a topic has none after so many seconds.
    """
    missing = [topic for topic in topics if topic.startswith(f"{detector}/")]
    deadline = time.monotonic() + timeout
    while missing := [topic for topic in missing if not node.count_publishers(topic)]:
        if time.monotonic() > deadline:
            raise UserError(
                f"nobody publishes '{missing[0]}' after {timeout:g} s: start the node first"
            )
        rclpy.spin_once(node, timeout_sec=0.1)


def main(args: list[str] | None = None) -> int:
    """Records until SIGINT or SIGTERM. Returns the exit code."""
    options = parser().parse_args(args)
    rclpy.init(args=[])
    try:
        space = options.height is not None
        topics = camera_topics(options.camera, options.node, options.transport, space=space)
        node = Node("recorder")
        with BagWriter(options.output) as bag:
            if space:
                bag.add("/tf_static", TRANSFORMS)
                bag.write("/tf_static", time.time_ns(), _static_transform(options.height))
            recorder = Recorder(node, topics, bag)
            if options.wait:
                _wait_for_node(node, topics, options.node, options.wait)
            print("recording", flush=True)
            with contextlib.suppress(ExternalShutdownException, KeyboardInterrupt):
                rclpy.spin(node)
        if options.summary:
            text = json.dumps({"bag": str(options.output), "topics": recorder.summary()}, indent=2)
            replace_file(options.summary, lambda partial: partial.write_text(text + "\n"))
        print(f"recorded {sum(map(len, recorder.received.values()))} messages", flush=True)
    except (UserError, OSError) as error:  # OSError: the disk is full, or not ours
        print(f"recorder: {one_line(error)}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):  # before anything is recorded
        return 130
    finally:
        try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
