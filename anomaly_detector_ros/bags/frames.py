"""Reading camera frames from rosbag2 recordings, with errors that say what is wrong with a bag."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from anomaly_detector_ros.bags.reader import BagReader
from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.imaging.images import ImageError, say_once
from anomaly_detector_ros.imaging.messages import compressed_to_rgb, image_to_rgb

NODE_NAME = "anomaly_detector"
IMAGE = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"


def camera_name(topic: str) -> str:
    """The camera a topic belongs to, as the node would name it.

    >>> camera_name("/camera/image_raw"), camera_name("/front/left/image_raw/compressed")
    ('camera', 'front/left')
    >>> camera_name("/image_raw"), camera_name("/thermal")
    ('camera', 'thermal')
    """
    parts = [part for part in topic.split("/") if part]
    if parts and parts[-1] == "compressed":
        parts.pop()
    if parts and parts[-1].startswith("image"):
        parts.pop()
    return "/".join(parts) or "camera"


def read_images(bag: Path, topic: str | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """Bag timestamp in ns and RGB picture of each frame of a camera topic, in the bag's order.

    Raises:
        UserError: the bag or the topic is missing or unreadable, or a frame is.
    """
    for timestamp, picture in read_frames(bag, topic):
        if isinstance(picture, ImageError):
            raise picture
        yield timestamp, picture


def read_frames(
    bag: Path, topic: str | None = None, stride: int = 1
) -> Iterator[tuple[int, np.ndarray | ImageError]]:
    """As :func:`read_images`, with every `stride`-th frame; one that is no picture is its error.

    Raises:
        UserError: the bag or the topic is missing or unreadable.
    """
    with BagReader(bag) as reader:
        chosen = choose_topic(reader, topic)
        messages = reader.messages([c for c in reader.connections if c.topic == chosen])
        for connection, timestamp, raw in islice(messages, 0, None, stride):
            picture: np.ndarray | ImageError
            try:
                message = deserialize(raw, connection.msgtype)
                picture = message_to_rgb(message, connection.msgtype, chosen)
            except ImageError as error:
                picture = error
            yield timestamp, picture


def choose_topic(reader: BagReader, topic: str | None) -> str:
    """The camera topic asked for, or the only one there is besides the detector's own outputs.

    Raises:
        UserError: no such topic, another type, no image topic or several; lists the candidates.
    """
    images = {c.topic for c in reader.connections if c.msgtype in (IMAGE, COMPRESSED)}
    candidates = sorted(name for name in images if f"/{NODE_NAME}/" not in name)
    bag = reader.bag
    listing = ", ".join(candidates) or "none"
    if topic is None:
        if not candidates:
            raise UserError(f"bag '{bag}' holds no camera images: give a bag with an Image topic")
        if len(candidates) > 1:
            raise UserError(
                f"bag '{bag}' holds several image topics: choose with --topic {listing}"
            )
        return candidates[0]
    topic = "/" + topic.strip("/")
    types = {c.msgtype for c in reader.connections if c.topic == topic}
    if not types:
        raise UserError(f"bag '{bag}' has no topic '{topic}': its image topics are {listing}")
    if not types <= {IMAGE, COMPRESSED}:
        raise UserError(
            f"topic '{topic}' is of type {min(types)}, not an image: the image topics are {listing}"
        )
    return topic


@lru_cache(maxsize=1)
def typestore() -> Typestore:
    """Message types to read and write with."""
    # The definitions used here are the same in Humble and Jazzy.
    return get_typestore(Stores.ROS2_HUMBLE)


def deserialize(raw: bytes, msgtype: str) -> Any:
    """The message; ImageError where the bytes are none."""
    try:
        return typestore().deserialize_cdr(raw, msgtype)
    except Exception as error:  # generated code: struct, index, value and assertion errors
        raise ImageError(f"message is truncated or corrupt: {one_line(error, 100)}") from error


def message_to_rgb(message: Any, msgtype: str, topic: str) -> np.ndarray:
    """RGB picture of an Image or CompressedImage message; what is odd of a topic is logged once."""
    note = partial(say_once, topic)
    if msgtype == IMAGE:
        return image_to_rgb(message, note=note)
    return compressed_to_rgb(message, note=note)
