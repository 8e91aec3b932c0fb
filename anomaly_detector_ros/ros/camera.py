"""One camera of the node: its subscriptions, what is done with an image, its publishers."""

from __future__ import annotations

import array
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.ros.ages import input_age
from anomaly_detector_ros.ros.conversion import (
    compressed_to_rgb,
    image_fields,
    image_to_rgb,
    info_fits,
)
from anomaly_detector_ros.ros.counters import CameraCounters
from anomaly_detector_ros.ros.outputs import IMAGE_OUTPUTS, JPEG_FORMAT, encode_jpeg, render
from anomaly_detector_ros.ros.qos import advertise, subscribe
from anomaly_detector_ros.ros.worker import Frame

if TYPE_CHECKING:
    from std_msgs.msg import Header

    from anomaly_detector_ros.detector import Detection, Detector
    from anomaly_detector_ros.ros.node import AnomalyDetectorNode

LOG_INTERVAL = 5.0
"""At most one log line per kind of trouble and this many seconds."""


@dataclass(frozen=True)
class Settings:
    """Parameters that an image is processed with."""

    threshold: float
    max_input_age: float
    jpeg_quality: int


class Camera:
    """One camera.

    Args:
        node: the node that owns subscriptions and publishers.
        name: the camera's name, a relative topic name.
        transport: ``raw`` or ``compressed``.
    """

    def __init__(self, node: AnomalyDetectorNode, name: str, transport: str) -> None:
        self.name = name
        self.counters = CameraCounters()
        self.qos_problem = ""
        self._node = node
        compressed = transport == "compressed"
        self._type = CompressedImage if compressed else Image
        self._to_rgb = compressed_to_rgb if compressed else image_to_rgb
        self.input_topic = f"{name}/image_raw/compressed" if compressed else f"{name}/image_raw"
        self._group = MutuallyExclusiveCallbackGroup()
        self._subscriptions: list[Any] = []
        self._publishers: dict[str, Any] = {}
        self._info: CameraInfo | None = None
        self._logged: dict[str, float] = {}

    # -- graph ------------------------------------------------------------------------------------

    def advertise(self) -> None:
        """Creates the publishers."""
        topics: dict[str, type] = dict.fromkeys(IMAGE_OUTPUTS, Image)
        topics |= {"overlay/compressed": CompressedImage, "camera_info": CameraInfo}
        for output, message_type in topics.items():
            topic = f"~/{self.name}/{output}"
            self._publishers[output] = advertise(self._node, message_type, topic, self._warn_qos)

    def subscribe(self, put: Callable[[Frame], None]) -> None:
        """Begins to listen; ``put`` gets every image, still serialised."""

        def on_image(data: bytes) -> None:
            if not self._node.enabled:
                self.counters.received()
                self.counters.dropped("paused")
                return
            put(Frame(data, time.monotonic(), self._now()))

        self.counters.restart_silence()
        topics = ((self._type, self.input_topic, on_image), self._info_subscription())
        for message_type, topic, callback in topics:
            self._subscriptions.append(
                subscribe(self._node, message_type, topic, callback, self._group, self._warn_qos)
            )

    def unsubscribe(self) -> None:
        """Stops listening."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()
        self._info = None
        self.qos_problem = ""

    def unadvertise(self) -> None:
        """Removes the publishers."""
        publishers, self._publishers = self._publishers, {}
        for publisher in publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)

    def publisher_count(self) -> int:
        """Publishers that exist on the input topic."""
        return self._node.count_publishers(self._node.resolve_topic_name(self.input_topic))

    def _info_subscription(self) -> tuple[type, str, Callable[[bytes], None]]:
        def on_info(data: bytes) -> None:
            self._info = deserialize_message(data, CameraInfo)

        return CameraInfo, f"{self.name}/camera_info", on_info

    # -- images, in the worker's thread ------------------------------------------------------------

    def process(self, frame: Frame, detector: Detector, settings: Settings) -> None:
        """Takes one image through the detector and publishes what has subscribers.

        Every image is counted once, as processed or as dropped with the reason. Nothing that an
        image holds makes this raise.
        """
        started = time.monotonic()
        try:
            message = deserialize_message(frame.data, self._type)
        except Exception as error:  # rclpy raises its own error types, not documented ones
            self._drop("bad", f"message on '{self.input_topic}' cannot be deserialised: {error}")
            return
        age = self._age(message.header, frame, settings.max_input_age)
        if settings.max_input_age and age > settings.max_input_age:
            self._drop(
                "too_old",
                f"image is {age:.2f} s old, max_input_age is {settings.max_input_age:g} s: if all "
                "are, synchronise the clocks or raise max_input_age",
            )
            return
        try:
            image = self._to_rgb(message)
        except UserError as error:
            self._drop("bad", str(error))
            return
        decoded = time.monotonic()
        try:
            detector.threshold = settings.threshold
            detection = detector.detect(image)
            if not np.isfinite(detection.heatmap).all():
                raise ValueError("the heatmap holds values that are not finite")
        except Exception as error:
            self._drop("failed", f"detection failed: {type(error).__name__}: {error}")
            return
        detected = time.monotonic()
        self._publish(message.header, image, detection, settings.jpeg_quality)
        done = time.monotonic()
        stages = {"decoding": decoded - started, **detection.timings, "publishing": done - detected}
        self.counters.processed(age, done - frame.arrived, stages)

    def _age(self, header: Header, frame: Frame, limit: float) -> float:
        stamp = header.stamp.sec * 1_000_000_000 + header.stamp.nanosec
        waited = time.monotonic() - frame.arrived
        age = input_age(stamp, frame.arrived_ros, self._now(), waited, limit)
        self.counters.stamped(age.by_stamp)
        return age.seconds

    def _publish(
        self, header: Header, image: np.ndarray, detection: Detection, jpeg_quality: int
    ) -> None:
        """Publishes the outputs somebody listens to; they are rendered for nobody else."""
        wanted = {
            output
            for output, publisher in self._publishers.items()
            if publisher.get_subscription_count() > 0
        }
        for output, spec in IMAGE_OUTPUTS.items():
            compressed = f"{output}/compressed"
            if not wanted & {output, compressed}:
                continue
            rendered = render(output, image, detection)
            if output in wanted:
                self._send(output, image_message(header, rendered, spec.encoding))
            if compressed in wanted:
                self._send(compressed, jpeg_message(header, rendered, jpeg_quality))
        if "camera_info" in wanted:
            self._publish_info(header, image.shape[:2])

    def _publish_info(self, header: Header, size: tuple[int, ...]) -> None:
        """The camera's calibration under the image's header, if it is of that image's size."""
        info = self._info
        if info is None:
            self._log("info", f"no message on '{self.name}/camera_info', so none is published")
            return
        if not info_fits(info, size):
            self._log(
                "info",
                f"'{self.name}/camera_info' is for {info.width}x{info.height}, the image is "
                f"{size[1]}x{size[0]}: correct the camera driver's calibration",
            )
            return
        info.header = header
        self._send("camera_info", info)

    def _send(self, output: str, message: Any) -> None:
        publisher = self._publishers.get(output)
        if publisher is not None:  # the node may have been cleaned up meanwhile
            publisher.publish(message)

    # -- trouble -----------------------------------------------------------------------------------

    def report(self, error: Exception) -> None:
        """Logs an error that nothing here foresaw."""
        self._log("unforeseen", f"{type(error).__name__}: {error}")

    def _drop(self, reason: str, problem: str) -> None:
        problem = one_line(problem)
        self.counters.dropped(reason, problem)
        self._log(reason, problem)

    def _log(self, kind: str, text: str) -> None:
        now = time.monotonic()
        if now - self._logged.get(kind, float("-inf")) < LOG_INTERVAL:
            return
        self._logged[kind] = now
        logger = self._node.get_logger()
        line = f"{self.name}: {text}"
        if kind in ("too_old", "info"):
            logger.warning(line)
        else:
            logger.error(line)

    def _warn_qos(self, text: str) -> None:
        self.qos_problem = text
        self._node.get_logger().warning(text)

    def _now(self) -> int:
        return self._node.get_clock().now().nanoseconds


def image_message(header: Header, pixels: np.ndarray, encoding: str) -> Image:
    """A `sensor_msgs/Image` of an array."""
    fields = image_fields(pixels, encoding)
    # rclpy takes an array.array as it is; anything else it checks and copies byte by byte.
    fields["data"] = array.array("B", fields["data"])
    return Image(header=header, **fields)


def jpeg_message(header: Header, picture: np.ndarray, quality: int) -> CompressedImage:
    """A `sensor_msgs/CompressedImage` of an RGB picture, as image_transport publishes them."""
    data = array.array("B", encode_jpeg(picture, quality))
    return CompressedImage(header=header, format=JPEG_FORMAT, data=data)
