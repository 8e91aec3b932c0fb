"""One camera of the node: its subscriptions, and what is done with an image of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.imaging.messages import compressed_to_rgb, image_to_rgb
from anomaly_detector_ros.imaging.skipping import FrameSkipper
from anomaly_detector_ros.imaging.temporal import TemporalFilter
from anomaly_detector_ros.ros.ages import input_age
from anomaly_detector_ros.ros.counters import CameraCounters, Dropped, Processed
from anomaly_detector_ros.ros.obstacles_output import ObstacleOutputs
from anomaly_detector_ros.ros.publishing import Outputs
from anomaly_detector_ros.ros.qos import Conflict, subscribe
from anomaly_detector_ros.ros.worker import Frame, Turn

if TYPE_CHECKING:
    from std_msgs.msg import Header

    from anomaly_detector_ros.detection import Detection
    from anomaly_detector_ros.ros.costmap_output import CostmapOutput
    from anomaly_detector_ros.ros.extrinsics import Transforms
    from anomaly_detector_ros.ros.node import AnomalyDetectorNode

LOG_INTERVAL = 5.0
"""At most one log line per kind of trouble and this many seconds."""


@dataclass(frozen=True)
class Settings:
    """Parameters that an image's outputs are made with."""

    threshold: float
    jpeg_quality: int
    temporal_filter: float


class Picture(NamedTuple):
    """An image as it goes to the models.

    Attributes:
        header: of the message.
        pixels: uint8 RGB (H, W, 3).
        age: seconds from stamp (or arrival) to the start of processing.
        seconds: what decoding took.
    """

    header: Header
    pixels: np.ndarray
    age: float
    seconds: float


class Camera:
    """One camera.

    Args:
        node: the node that owns subscriptions and publishers.
        name: the camera's name, a relative topic name.
        transport: ``raw`` or ``compressed``.
        transforms: where TF is looked up.
        costmap: what all cameras add to.
    """

    def __init__(
        self,
        node: AnomalyDetectorNode,
        name: str,
        transport: str,
        transforms: Transforms,
        costmap: CostmapOutput,
    ) -> None:
        self.name = name
        self.counters = CameraCounters()
        self._node = node
        compressed = transport == "compressed"
        self._type = CompressedImage if compressed else Image
        self._to_rgb = compressed_to_rgb if compressed else image_to_rgb
        self.input_topic = f"{name}/image_raw/compressed" if compressed else f"{name}/image_raw"
        self._group = MutuallyExclusiveCallbackGroup()
        self._subscriptions: list[Any] = []
        self._outputs = Outputs(node, name, self._warn_qos)
        self._obstacles = ObstacleOutputs(node, name, transforms, costmap, self._warn_qos)
        self._info: CameraInfo | None = None
        self._filter = TemporalFilter()
        self.skipper: FrameSkipper[Detection] = FrameSkipper()
        self._conflicts: dict[str, Conflict] = {}
        self._logged: dict[str, float] = {}

    # -- graph ------------------------------------------------------------------------------------

    def subscribe(self, put: Callable[[Frame], None]) -> None:
        """Begins to listen; ``put`` gets every image, still serialised."""

        def on_image(data: bytes) -> None:
            if not self._node.enabled:
                self.counters.received()
                self.counters.dropped("paused")
                return
            put(Frame(data, time.monotonic(), self._now()))

        def on_info(data: bytes) -> None:
            try:
                self._info = deserialize_message(data, CameraInfo)
            except Exception as error:  # see `decode`
                self._log("info", f"camera_info cannot be deserialised: {error}")

        self.counters.restart_silence()
        self._listen(self._type, self.input_topic, on_image)
        self._listen(CameraInfo, f"{self.name}/camera_info", on_info)
        self._obstacles.subscribe(self._listen)

    def _listen(self, message_type: type, topic: str, callback: Callable[[bytes], None]) -> None:
        self._subscriptions.append(
            subscribe(self._node, message_type, topic, callback, self._group, self._warn_qos)
        )

    def unsubscribe(self) -> None:
        """Stops listening."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()
        self._info = None
        self._conflicts.clear()
        self.reset()

    def close(self) -> None:
        """Stops listening and removes the publishers."""
        self.unsubscribe()
        self._outputs.close()
        self._obstacles.close()

    def reset(self) -> None:
        """Forgets the images seen, as when the clock jumps."""
        self._filter.reset()
        self.skipper.reset()
        self._obstacles.reset()

    def publisher_count(self) -> int:
        """Publishers that exist on the input topic."""
        return self._node.count_publishers(self._node.resolve_topic_name(self.input_topic))

    def qos_problem(self) -> str:
        """Whose QoS does not match on one of the camera's topics, in one line; else empty."""
        for topic, conflict in list(self._conflicts.items()):
            if conflict.over():
                self._conflicts.pop(topic, None)
        return next((conflict.text for conflict in list(self._conflicts.values())), "")

    def publish_labels(self, threshold: float) -> None:
        """Tells what the mask's values stand for and the threshold in force."""
        self._outputs.publish_labels(self._node.get_clock().now().to_msg(), threshold)

    # -- images, in the worker's thread ------------------------------------------------------------

    def decode(self, turn: Turn, max_input_age: float) -> Picture | None:
        """The image of a turn; None, the turn being settled, where there is none to work on.

        Nothing that a message holds makes this raise.
        """
        started = time.monotonic()
        try:
            message = deserialize_message(turn.frame.data, self._type)
        except Exception as error:  # rclpy raises its own error types, not documented ones
            problem = f"message on '{self.input_topic}' cannot be deserialised: {error}"
            return self.drop(turn, "bad", problem)
        self._obstacles.begin(message.header)
        age = self._age(message.header, turn.frame, max_input_age)
        if max_input_age and age > max_input_age:
            return self.drop(
                turn,
                "too_old",
                f"image is {age:.2f} s old, max_input_age is {max_input_age:g} s: if all "
                "are, synchronise the clocks or raise max_input_age",
            )
        try:
            pixels = self._to_rgb(message)
        except UserError as error:
            return self.drop(turn, "bad", str(error))
        return Picture(message.header, pixels, age, time.monotonic() - started)

    def _age(self, header: Header, frame: Frame, limit: float) -> float:
        waited = time.monotonic() - frame.arrived
        age = input_age(_nanoseconds(header), frame.arrived_ros, self._now(), waited, limit)
        self.counters.stamped(age.by_stamp)
        return age.seconds

    def finish(
        self, turn: Turn, picture: Picture, detection: Detection, settings: Settings
    ) -> bool:
        """Publishes what was found in an image; False if its thread was given up meanwhile."""
        started = time.monotonic()
        if turn.settled:
            return False
        detection = self._filtered(picture.header, detection, settings)
        trouble = self._outputs.publish(
            picture.header, picture.pixels, detection, self._info, settings.jpeg_quality
        )
        if trouble:
            self._log("info", trouble)
        trouble = self._obstacles.publish(
            picture.header, detection.mask, detection.heatmap, self._info
        )
        if trouble:
            self._log("obstacles", trouble)
        done = time.monotonic()
        stages = {
            "decoding": picture.seconds,
            **detection.timings,
            "publishing": done - started,
        }
        return turn.settle(Processed(picture.age, done - turn.frame.arrived, stages))

    def _filtered(self, header: Header, found: Detection, settings: Settings) -> Detection:
        from anomaly_detector_ros.detection import frame_score

        stamp = _nanoseconds(header)
        heatmap = self._filter.update(found.heatmap, stamp, settings.temporal_filter)
        score = found.score if heatmap is found.heatmap else frame_score(heatmap)
        mask = heatmap >= np.float32(settings.threshold)
        return replace(found, heatmap=heatmap, mask=mask, score=score)

    # -- trouble -----------------------------------------------------------------------------------

    def report(self, error: Exception) -> None:
        """Logs an error that nothing here foresaw."""
        self._log("unforeseen", f"{type(error).__name__}: {error}")

    def drop(self, turn: Turn, reason: str, problem: str) -> None:
        """Settles a turn as dropped and logs why."""
        problem = one_line(problem)
        if turn.settle(Dropped(reason, problem)):
            self._log(reason, problem)

    def _log(self, kind: str, text: str) -> None:
        now = time.monotonic()
        if now - self._logged.get(kind, float("-inf")) < LOG_INTERVAL:
            return
        self._logged[kind] = now
        logger = self._node.get_logger()
        line = f"{self.name}: {text}"
        if kind in ("too_old", "info", "obstacles"):
            logger.warning(line)
        else:
            logger.error(line)

    def _warn_qos(self, conflict: Conflict) -> None:
        self._conflicts[conflict.topic] = conflict
        self._node.get_logger().warning(conflict.text)

    def _now(self) -> int:
        return self._node.get_clock().now().nanoseconds


def _nanoseconds(header: Header) -> int:
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec
