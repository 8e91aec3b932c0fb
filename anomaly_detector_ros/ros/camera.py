"""One camera of the node: its subscriptions, and what is done with an image of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from geometry_msgs.msg import PointStamped
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from anomaly_detector_ros.calibration.level import StreamLevels
from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.imaging.messages import compressed_to_rgb, image_to_rgb
from anomaly_detector_ros.imaging.skipping import FrameSkipper
from anomaly_detector_ros.imaging.temporal import TemporalFilter
from anomaly_detector_ros.mapping.poses import Taken
from anomaly_detector_ros.ros.counters import CameraCounters, Dropped, Processed
from anomaly_detector_ros.ros.obstacles import ObstacleOutputs
from anomaly_detector_ros.ros.output import Output, OutputState
from anomaly_detector_ros.ros.publishers import Outputs
from anomaly_detector_ros.ros.qos import EVENTS, Topics
from anomaly_detector_ros.ros.worker import Frame, Turn, input_age, moments

if TYPE_CHECKING:
    from rclpy.impl.rcutils_logger import RcutilsLogger
    from std_msgs.msg import Header

    from anomaly_detector_ros.detection import Detection

CLICKS = {"accept": True, "reject": False}
"""Topics below a camera's, in whose points what was shown is nominal, or is not."""
LOG_INTERVAL = 5.0
"""At most one log line per kind of trouble and this many seconds."""


class Picture(NamedTuple):
    """An image as it goes to the models.

    Attributes:
        header: of the message.
        pixels: uint8 RGB (H, W, 3).
        age: seconds from stamp (or arrival) to the start of processing.
        taken: where and when it was.
        seconds: what decoding took.
    """

    header: Header
    pixels: np.ndarray
    age: float
    taken: Taken
    seconds: float

    @property
    def stamp(self) -> int:
        """Of the message, nanoseconds."""
        return nanoseconds(self.header)


def input_topic(camera: str, transport: str) -> str:
    """Where the images of a camera are read; ``transport`` is ``raw`` or ``compressed``."""
    return f"{camera}/image_raw" + ("/compressed" if transport == "compressed" else "")


def names_rectified(topic: str) -> bool:
    """Whether a topic's full name says that its images are rectified, as image_proc calls them.

    >>> names_rectified("/left/image_rect_color"), names_rectified("/left/image_raw")
    (True, False)
    """
    return any(part.startswith("image_rect") for part in topic.split("/"))


class Camera:
    """One camera.

    Attributes:
        outputs: what is made of its images, by name; the costmap is its share in it.

    Args:
        name: the camera's name, a relative topic name.
        transport: ``raw`` or ``compressed``.
        topics: its topics.
        obstacles: what it tells of the space ahead.
        enabled: asked at each image, which is dropped if it says no.
        clock: the node's.
        logger: the node's.
    """

    def __init__(
        self,
        name: str,
        transport: str,
        topics: Topics,
        obstacles: ObstacleOutputs,
        *,
        enabled: Callable[[], bool],
        clock: Clock,
        logger: RcutilsLogger,
    ) -> None:
        self.name, self.topics = name, topics
        self.counters = CameraCounters()
        compressed = transport == "compressed"
        self._type = CompressedImage if compressed else Image
        self._to_rgb = compressed_to_rgb if compressed else image_to_rgb
        self.input_topic = input_topic(name, transport)
        self._outputs, self._obstacles = Outputs(topics, name), obstacles
        self.outputs: Mapping[str, Output] = {**self._outputs.outputs, **obstacles.outputs}
        self._enabled, self._clock, self._logger = enabled, clock, logger
        self._info: CameraInfo | None = None
        self._filter = TemporalFilter()
        self.levels = StreamLevels()
        self.skipper: FrameSkipper[Detection] = FrameSkipper()
        self._logged: dict[str, float] = {}
        self._noted: set[str] = set()

    def listen(
        self, put: Callable[[Frame], None], click: Callable[[PointStamped, bool], None], depth: bool
    ) -> None:
        """Begins to listen; ``put`` gets every image, still serialised.

        Args:
            click: gets the points that are called nominal, or anomalous.
            depth: whether to listen to depth images, too.
        """

        def on_image(data: bytes) -> None:
            if not self._enabled():
                self.counters.received()
                self.counters.settle(Dropped("paused"))
                return
            put(Frame(data, time.monotonic(), self._clock.now().nanoseconds))

        def on_info(data: bytes) -> None:
            try:
                self._info = deserialize_message(data, CameraInfo)
            except Exception as error:  # see `decode`
                self._log("info", f"camera_info cannot be deserialised: {error}")

        self.counters.restart_silence()
        group = MutuallyExclusiveCallbackGroup()
        self.topics.subscribe(self._type, self.input_topic, on_image, group)
        self.topics.subscribe(CameraInfo, f"{self.name}/camera_info", on_info, group)
        # Some drivers send it once, which may be before.
        self.topics.subscribe_latched(CameraInfo, f"{self.name}/camera_info", on_info, group)
        for topic, nominal in CLICKS.items():

            def on_click(data: bytes, nominal: bool = nominal) -> None:
                try:
                    click(deserialize_message(data, PointStamped), nominal)
                except Exception as error:  # see `decode`
                    self._log("info", f"a point cannot be deserialised: {error}")

            self.topics.subscribe(PointStamped, f"~/{self.name}/{topic}", on_click, group, EVENTS)
        if depth:
            self.topics.subscribe(Image, f"{self.name}/depth", self._obstacles.depth.put, group)

    def unlisten(self) -> None:
        """Stops listening."""
        self.topics.unsubscribe()
        self._info = None
        self.reset()

    def reset(self) -> None:
        """Forgets the images seen, as when the clock jumps."""
        self._filter.reset()
        self.levels.reset()
        self.skipper.reset()
        self._obstacles.depth.clear()

    def locate(
        self, point: np.ndarray, frame: str, size: tuple[int, ...], taken: Taken
    ) -> tuple[int, int] | None:
        """The pixel, row and column, that shows a point; see `ObstacleOutputs.locate`."""
        return self._obstacles.locate(point, frame, size, taken, self._info)

    def publish_labels(self, threshold: float) -> None:
        """Publishes what the mask's values stand for."""
        self._outputs.publish_labels(self._clock.now().to_msg(), threshold)

    def states(self, obstacle: str, active: bool) -> dict[str, OutputState]:
        """How it stands with each output, by name.

        Args:
            obstacle: why nothing can be made of images now; empty: something can.
            active: whether the node is.
        """
        found = {name: output.state(obstacle) for name, output in self.outputs.items()}
        # These are made of no image.
        found["label_info"] = self._outputs.labels.state("" if active else obstacle)
        return found

    # -- images, in the worker's thread ------------------------------------------------------------

    def decode(
        self, frame: Frame, max_input_age: float, grey_range: Sequence[float]
    ) -> Picture | Dropped:
        """The image of a message, or why there is none to work on.

        Nothing that a message holds makes this raise.

        Args:
            frame: holds the message.
            max_input_age, grey_range: the node's parameters.
        """
        started = time.monotonic()
        try:
            message = deserialize_message(frame.data, self._type)
        except Exception as error:  # rclpy raises its own error types, not documented ones
            return Dropped(
                "bad", f"message on '{self.input_topic}' cannot be deserialised: {error}"
            )
        # As TF 1 had it; no listener's TF 2 would find it.
        message.header.frame_id = message.header.frame_id.lstrip("/")
        stamp = nanoseconds(message.header)
        self._obstacles.depth.watch(stamp)
        now = self._clock.now().nanoseconds
        waited = time.monotonic() - frame.arrived
        age, by_stamp = input_age(stamp, frame.arrived_ros, now, waited, max_input_age)
        self.counters.stamped(by_stamp)
        if max_input_age and age > max_input_age:
            return Dropped(
                "too_old",
                f"image is {age:.2f} s old, max_input_age is {max_input_age:g} s: if all "
                "are, synchronise the clocks or raise max_input_age",
            )
        try:
            low, high = grey_range
            fixed = (low, high) if low < high else None
            pixels = self._to_rgb(message, grey_range=fixed, note=self._note)
        except UserError as error:
            return Dropped("bad", str(error))
        return Picture(
            message.header,
            pixels,
            age,
            Taken(message.header.frame_id, moments(stamp, frame.arrived_ros, by_stamp)),
            time.monotonic() - started,
        )

    def finish(
        self,
        turn: Turn,
        picture: Picture,
        detection: Detection,
        *,
        threshold: float,
        temporal_filter: float,
        jpeg_quality: int,
    ) -> bool:
        """Publishes what was found in an image; False if its thread was given up meanwhile."""
        started = time.monotonic()
        if turn.settled:
            return False
        header = picture.header
        detection = self._filtered(header, detection, threshold, temporal_filter)
        self._outputs.publish(header, picture.pixels, detection, self._info, jpeg_quality)
        self._obstacles.publish(
            header,
            self._clock.now().nanoseconds,
            picture.taken,
            detection.mask,
            detection.heatmap,
            self._info,
        )
        told: set[str] = set()
        for name, output in self.outputs.items():
            if output.problem and output.problem not in told:
                told.add(output.problem)
                self._log(f"output {name}", f"{name}: {output.problem}")
        done = time.monotonic()
        stages = {
            "decoding": picture.seconds,
            **detection.timings,
            "publishing": done - started,
        }
        return turn.settle(Processed(picture.age, done - turn.frame.arrived, stages))

    def _filtered(
        self, header: Header, found: Detection, threshold: float, seconds: float
    ) -> Detection:
        from anomaly_detector_ros.detection import frame_score

        stamp = nanoseconds(header)
        heatmap = self._filter.update(found.heatmap, stamp, seconds)
        score = found.score if heatmap is found.heatmap else frame_score(heatmap)
        mask = heatmap >= np.float32(threshold)
        return replace(found, heatmap=heatmap, mask=mask, score=score)

    # -- trouble -----------------------------------------------------------------------------------

    def report(self, error: Exception) -> None:
        """Logs an error that nothing here foresaw."""
        self._log("unforeseen", f"{type(error).__name__}: {error}")

    def drop(self, turn: Turn, fate: Dropped) -> None:
        """Settles a turn as dropped and logs why."""
        if turn.settle(fate):
            self._log(fate.reason, one_line(fate.problem))

    def _note(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            self._logger.warning(f"{self.name}: {text}")

    def _log(self, kind: str, text: str) -> None:
        now = time.monotonic()
        if now - self._logged.get(kind, float("-inf")) < LOG_INTERVAL:
            return
        self._logged[kind] = now
        line = f"{self.name}: {text}"
        # Each call from a line of its own: rclpy refuses another severity from the same one.
        if kind in ("too_old", "info") or kind.startswith("output"):
            self._logger.warning(line)
        else:
            self._logger.error(line)


def nanoseconds(header: Header) -> int:
    """The stamp of a message."""
    return int(header.stamp.sec) * 1_000_000_000 + int(header.stamp.nanosec)
