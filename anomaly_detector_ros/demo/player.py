"""Plays pictures or a bag as a camera: ``python -m anomaly_detector_ros.demo.player``.

Messages carry the time of their publication, so that latencies can be measured against it.
"""

from __future__ import annotations

import argparse
import array
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import rclpy
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.serialization import deserialize_message
from rclpy.utilities import ok, try_shutdown
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from anomaly_detector_ros.demo.camera import OPTICAL, SceneCamera
from anomaly_detector_ros.demo.graph import FRAME_TIMEOUT, Counts
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.imaging.images import ImageError, Range, decode_image
from anomaly_detector_ros.imaging.messages import image_fields
from anomaly_detector_ros.sources.frames import Source, find_sources, frame_name, read_sources
from anomaly_detector_ros.sources.recordings import COMPRESSED, IMAGE, BagReader, choose_topic
from anomaly_detector_ros.sources.tally import Tally

RATE = 5.0
_TYPES = {IMAGE: Image, COMPRESSED: CompressedImage}
_QUEUE = 5


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="player", description=(__doc__ or "").splitlines()[0])
    made.add_argument(
        "input", type=Path, nargs="+", help="pictures, folders, videos; or recordings"
    )
    made.add_argument(
        "--camera",
        default="camera",
        help="camera name: prefix of the topics, in the namespace of the --answers node if any",
    )
    made.add_argument("--topic", help="image topic of the bag to play (default: its only one)")
    made.add_argument(
        "--rate",
        type=float,
        help=f"images per second (default: {RATE:g}, or with --answers as many as are answered)",
    )
    made.add_argument(
        "--answers",
        metavar="NODE",
        help="send an image when this detector, by its full name, has answered the one before, or "
        "says that it dropped it",
    )
    made.add_argument(
        "--on-error", choices=("skip", "stop"), default="skip", help="what to do with a bad one"
    )
    made.add_argument(
        "--grey-range",
        type=float,
        nargs=2,
        default=(0.0, 0.0),
        help="values of pictures of more than 8 bits that become black and white",
    )
    made.add_argument(
        "--count", type=int, help="images to play, over and over (default: each once)"
    )
    made.add_argument(
        "--calibration", type=Path, metavar="FILE", help="JSON file of the pictures' camera"
    )
    made.add_argument(
        "--subscribers", type=int, default=1, help="wait for this many before the first image"
    )
    made.add_argument(
        "--wait", type=float, default=120.0, help="seconds to wait for subscribers at most"
    )
    return made


class Played(NamedTuple):
    """A message, and the stem of the file that its picture is of."""

    message: Image | CompressedImage
    name: str


def messages_of(
    sources: Sequence[Source], tally: Tally, grey_range: Range | None = None
) -> Iterator[Played]:
    """The messages of one recording as they are, frames of all else as rgb8 images.

    Args:
        sources: what to play.
        tally: counts what is no picture or no message.
        grey_range: see `images.to_8_bit`.
    """
    if len(sources) == 1 and sources[0].kind == "recording":
        try:
            yield from _recorded(sources[0], tally)
        except UserError as error:
            tally.fail(str(sources[0].file), error)
        return
    for frame in read_sources(sources, tally, grey_range=grey_range):
        fields = image_fields(frame.pixels, "rgb8")
        fields["data"] = array.array("B", fields["data"])
        message = Image(**fields)
        message.header.frame_id = OPTICAL
        yield Played(message, frame.source.file.stem)


def _recorded(source: Source, tally: Tally) -> Iterator[Played]:
    with BagReader(source.file) as reader:
        chosen = choose_topic(reader, source.topic)
        connections = [c for c in reader.connections if c.topic == chosen]
        for number, (connection, _, data) in enumerate(reader.messages(connections)):
            try:
                message = deserialize_message(data, _TYPES[connection.msgtype])
            except Exception as error:  # rmw's own kinds
                tally.skip("unreadable", frame_name(source, number), error)
                continue
            yield Played(message, source.file.stem)


class Answers:
    """What a detector has made of the images that were sent, one after the other.

    Its mask of an image is an answer. So is a higher count of finished images in its diagnostics,
    once a second: an image that it drops has no mask.

    Args:
        node: the node that listens.
        detector: the detector's full name.
        camera: the camera's name.
    """

    def __init__(self, node: Node, detector: str, camera: str) -> None:
        self._node, self._detector = node, detector
        self._status = f"{detector.lstrip('/')}: {camera}"
        self._stamp: Time | None = None
        self._before: int | None = None
        self._finished = 0
        node.create_subscription(Image, f"{detector}/{camera}/mask", self._on_mask, _QUEUE)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, _QUEUE)

    def _on_mask(self, message: Image) -> None:
        self._stamp = message.header.stamp

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        counts = Counts.of(message, self._status)
        if counts is not None:
            self._finished = counts.processed + counts.dropped
            self._before = self._finished if self._before is None else self._before

    def wait_for_node(self, timeout: float) -> None:
        """Returns once the detector tells its counts; UserError if it does not in time."""
        self._wait(lambda: self._before is not None, timeout, "does not publish diagnostics")

    def wait_for(self, stamp: Time, sent: int) -> None:
        """Returns once the image of this stamp, the last of so many sent, is answered or dropped.

        Raises:
            UserError: neither within `FRAME_TIMEOUT`.
        """

        def answered() -> bool:
            return self._stamp == stamp or self._finished - (self._before or 0) >= sent

        self._wait(answered, FRAME_TIMEOUT, f"does not answer image {sent}")

    def _wait(self, condition: Callable[[], bool], timeout: float, trouble: str) -> None:
        deadline = time.monotonic() + timeout
        while ok() and not condition():
            if time.monotonic() > deadline:
                raise UserError(f"'{self._detector}' {trouble} within {timeout:g} s: see its log")
            rclpy.spin_once(self._node, timeout_sec=0.1)


class Player:
    """Publishes images and a matching camera_info under a camera's name.

    Args:
        node: the node that publishes.
        camera: the camera's name.
        message_type: `Image`, or `CompressedImage` for ``<camera>/image_raw/compressed``.
        calibration: the camera of the pictures, where it is known.
    """

    def __init__(
        self, node: Node, camera: str, message_type: type, calibration: SceneCamera | None = None
    ) -> None:
        suffix = "" if message_type is Image else "/compressed"
        self._node, self._calibration = node, calibration
        self._images = node.create_publisher(message_type, f"{camera}/image_raw{suffix}", _QUEUE)
        self._infos = node.create_publisher(CameraInfo, f"{camera}/camera_info", _QUEUE)

    def wait_for(self, subscribers: int, timeout: float) -> None:
        """Returns once as many subscribers are there, or the context is shut down.

        Raises:
            UserError: they are not there in time.
        """
        deadline = time.monotonic() + timeout
        while ok() and self._images.get_subscription_count() < subscribers:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{self._images.get_subscription_count()} of {subscribers} subscribers on "
                    f"'{self._images.topic_name}' after {timeout:g} s: start them, or set --wait"
                )
            time.sleep(0.05)
        time.sleep(0.2)  # the other side may learn of the match a little later

    def play(
        self,
        messages: Iterator[Played],
        rate: float | None,
        answers: Answers | None = None,
    ) -> int:
        """Publishes the images; returns how many.

        Args:
            messages: the images; they get the time of their publication.
            rate: the most images per second; None for no limit.
            answers: waits for the answer to each image.
        """
        period = 1.0 / rate if rate else 0.0
        due, count = time.monotonic(), 0
        for message, name in messages:
            time.sleep(max(0.0, due - time.monotonic()))
            if not ok():
                break
            due = max(due + period, time.monotonic() - period)
            message.header.stamp = self._node.get_clock().now().to_msg()
            with suppress(ImageError):  # of a damaged picture nobody knows the size
                self._infos.publish(_info(message, name, self._calibration))
            self._images.publish(message)
            count += 1
            if answers is not None:
                answers.wait_for(message.header.stamp, count)
        return count

    def finish(self) -> None:
        """Waits until what was published has arrived."""
        if ok():
            self._images.wait_for_all_acked(Duration(seconds=2))
            time.sleep(0.5)


def _info(
    message: Image | CompressedImage, name: str, calibration: SceneCamera | None
) -> CameraInfo:
    """A camera_info; of a camera that is not known with a zero focal length, as ROS has it."""
    info = CameraInfo(header=message.header)
    if isinstance(message, Image):
        info.height, info.width = message.height, message.width
    else:
        info.height, info.width = decode_image(message.data).shape[:2]
    if calibration is not None and (k := calibration.matrix(name, info.width)):
        info.distortion_model, info.d = "plumb_bob", [0.0] * 5
        info.k, info.r = k, [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
        info.p = [*k[:3], 0.0, *k[3:6], 0.0, *k[6:], 0.0]
    return info


def _messages(
    sources: Sequence[Source], count: int | None, tally: Tally, grey_range: Range | None
) -> Iterator[Played]:
    """The input's images, each once or over and over up to a number."""
    if count is None:
        yield from messages_of(sources, tally, grey_range)
        return
    left = count
    while left > 0:
        before = left
        for message in islice(messages_of(sources, tally, grey_range), left):
            left -= 1
            yield message
        if left == before:  # nothing there
            return


def main(args: list[str] | None = None) -> int:
    """Plays until the end of the input, SIGINT or SIGTERM. Returns the exit code."""
    options = parser().parse_args(args)
    rclpy.init(args=[])
    try:
        rate = RATE if options.rate is None and not options.answers else options.rate
        if rate is not None and rate <= 0:
            raise UserError("--rate must be above 0")
        tally = Tally(stop=options.on_error == "stop")
        sources = find_sources(options.input, options.topic)
        low, high = options.grey_range
        messages = _messages(sources, options.count, tally, (low, high) if low < high else None)
        first = next(messages, None)
        if first is None:
            tally.check()
            raise UserError("there is no picture to play")
        node = Node("player", namespace=(options.answers or "").rpartition("/")[0])
        calibration = SceneCamera.load(options.calibration) if options.calibration else None
        player = Player(node, options.camera, type(first.message), calibration)
        answers = Answers(node, options.answers, options.camera) if options.answers else None
        player.wait_for(options.subscribers, options.wait)
        if answers is not None:
            answers.wait_for_node(options.wait)
        count = player.play(chain([first], messages), rate, answers)
        player.finish()
        tally.processed = count
        print(f"played {count} images", flush=True)
        print(json.dumps({"frames": tally.to_dict(), "lines": tally.lines()[1:]}), flush=True)
        if tally.failed:
            tally.check()
    except UserError as error:
        print(f"player: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
