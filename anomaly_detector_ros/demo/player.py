"""Plays pictures or a bag as a camera: ``python -m anomaly_detector_ros.demo.player``.

Messages carry the time of their publication, so that latencies can be measured against it.
"""

from __future__ import annotations

import argparse
import array
import sys
import time
from collections.abc import Iterator
from itertools import chain, islice, repeat
from pathlib import Path

import rclpy
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.imaging.images import IMAGE_SUFFIXES, decode_image
from anomaly_detector_ros.imaging.messages import image_fields

_TYPES = {"sensor_msgs/msg/Image": Image, "sensor_msgs/msg/CompressedImage": CompressedImage}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="player", description=__doc__.splitlines()[0])
    made.add_argument("input", nargs="+", type=Path, help="pictures, folders of them, or one bag")
    made.add_argument("--camera", default="camera", help="camera name: prefix of the topics")
    made.add_argument("--topic", help="image topic of the bag to play (default: its first)")
    made.add_argument("--rate", type=float, default=5.0, help="images per second")
    made.add_argument(
        "--count", type=int, help="images to play, over and over (default: each once)"
    )
    made.add_argument("--frame-id", default="camera_optical_frame", help="of pictures")
    made.add_argument(
        "--subscribers", type=int, default=1, help="wait for this many before the first image"
    )
    made.add_argument(
        "--wait", type=float, default=120.0, help="seconds to wait for subscribers at most"
    )
    return made


def picture_files(inputs: list[Path]) -> list[Path]:
    """The picture files among the inputs, folders searched, in order of name."""
    files: list[Path] = []
    for each in inputs:
        if each.is_dir():
            files += sorted(p for p in each.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        elif each.is_file():
            files.append(each)
        else:
            raise UserError(f"'{each}' does not exist: give pictures, a folder or a bag")
    if not files:
        raise UserError(
            f"no picture in '{inputs[0]}': give files that end in {', '.join(IMAGE_SUFFIXES)}"
        )
    return files


def picture_messages(files: list[Path], frame_id: str) -> Iterator[Image]:
    """The pictures as rgb8 or mono8 images."""
    for file in files:
        pixels = decode_image(file.read_bytes())
        fields = image_fields(pixels, "rgb8" if pixels.ndim == 3 else "mono8")
        fields["data"] = array.array("B", fields["data"])
        message = Image(**fields)
        message.header.frame_id = frame_id
        yield message


def bag_messages(bag: Path, topic: str | None) -> Iterator[Image | CompressedImage]:
    """The images of one topic of a ROS 2 bag."""
    from rosbags.highlevel import AnyReader, AnyReaderError

    try:
        with AnyReader([bag]) as reader:
            images = [c for c in reader.connections if c.msgtype in _TYPES]
            chosen = [c for c in images if c.topic == (topic or images[0].topic)]
            if not chosen:
                known = ", ".join(sorted({c.topic for c in images})) or "none"
                raise UserError(f"'{bag}' has no such image topic: choose one of: {known}")
            for connection, _, data in reader.messages(chosen):
                yield deserialize_message(bytes(data), _TYPES[connection.msgtype])
    except AnyReaderError as error:
        raise UserError(f"cannot read bag '{bag}' ({error}): give a rosbag2 directory") from error


def is_bag(path: Path) -> bool:
    """Whether a path is a rosbag2 directory or one of its files."""
    return path.suffix in (".mcap", ".db3") or (path / "metadata.yaml").is_file()


class Player:
    """Publishes images and a matching camera_info under a camera's name.

    Args:
        node: the node that publishes.
        camera: the camera's name.
        message_type: `Image`, or `CompressedImage` for ``<camera>/image_raw/compressed``.
    """

    def __init__(self, node: Node, camera: str, message_type: type) -> None:
        qos = QoSProfile(
            history=HistoryPolicy.KEEP_LAST, depth=5, reliability=ReliabilityPolicy.RELIABLE
        )
        suffix = "" if message_type is Image else "/compressed"
        self._node = node
        self._images = node.create_publisher(message_type, f"{camera}/image_raw{suffix}", qos)
        self._infos = node.create_publisher(CameraInfo, f"{camera}/camera_info", qos)

    def wait_for(self, subscribers: int, timeout: float) -> None:
        """Returns once as many subscribers are there, or the context is shut down.

        Raises:
            UserError: they are not there in time.
        """
        deadline = time.monotonic() + timeout
        while rclpy.ok() and self._images.get_subscription_count() < subscribers:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{self._images.get_subscription_count()} of {subscribers} subscribers on "
                    f"'{self._images.topic_name}' after {timeout:g} s: start them, or set --wait"
                )
            time.sleep(0.05)
        time.sleep(0.2)  # the other side may learn of the match a little later

    def play(self, messages: Iterator[Image | CompressedImage], rate: float) -> int:
        """Publishes the images at a rate in Hz; returns how many."""
        due, count = time.monotonic(), 0
        for message in messages:
            time.sleep(max(0.0, due - time.monotonic()))
            if not rclpy.ok():
                break
            due = max(due + 1.0 / rate, time.monotonic() - 1.0 / rate)
            message.header.stamp = self._node.get_clock().now().to_msg()
            self._infos.publish(_info(message))
            self._images.publish(message)
            count += 1
        return count

    def finish(self) -> None:
        """Waits until what was published has arrived."""
        if rclpy.ok():
            self._images.wait_for_all_acked(Duration(seconds=2))
            time.sleep(0.5)


def _info(message: Image | CompressedImage) -> CameraInfo:
    """A camera_info that says "uncalibrated", by a zero focal length as ROS has it."""
    info = CameraInfo(header=message.header)
    if isinstance(message, Image):
        info.height, info.width = message.height, message.width
    else:
        info.height, info.width = decode_image(message.data).shape[:2]
    return info


def _messages(options: argparse.Namespace) -> Iterator[Image | CompressedImage]:
    def once() -> Iterator[Image | CompressedImage]:
        if is_bag(options.input[0]):
            return bag_messages(options.input[0], options.topic)
        return picture_messages(picture_files(options.input), options.frame_id)

    if options.count is None:
        return once()
    return islice(chain.from_iterable(once() for _ in repeat(None)), options.count)


def main(args: list[str] | None = None) -> int:
    """Plays until the end of the input, SIGINT or SIGTERM. Returns the exit code."""
    options = parser().parse_args(args)
    rclpy.init(args=[])
    try:
        if options.rate <= 0:
            raise UserError("--rate must be above 0")
        messages = _messages(options)
        first = next(messages, None)
        if first is None:
            raise UserError(f"no image in '{options.input[0]}': give pictures or a bag with images")
        node = Node("player")
        player = Player(node, options.camera, type(first))
        player.wait_for(options.subscribers, options.wait)
        count = player.play(chain([first], messages), options.rate)
        player.finish()
        print(f"played {count} images", flush=True)
    except UserError as error:
        print(f"player: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
