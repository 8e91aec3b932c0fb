"""Recordings and the camera frames in them, with errors that say what is wrong with a bag."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

import numpy as np
import yaml
from rosbags.interfaces import Connection, ConnectionExtRosbag2, Qos
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.imaging.images import ImageError, Range, say_once
from anomaly_detector_ros.imaging.messages import compressed_to_rgb, image_to_rgb
from anomaly_detector_ros.sources import mcap, ros1, sqlite
from anomaly_detector_ros.sources.storage import Storage, definition, message_type, read_qos
from anomaly_detector_ros.sources.unpacking import ZSTD_MAGIC, unpack, unpack_file

NODE_NAME = "anomaly_detector"
IMAGE = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"

_METADATA = "metadata.yaml"
_BEGINNING = 16
_MAGIC = (mcap.MAGIC, sqlite.MAGIC, ros1.MAGIC)


def is_recording(path: Path) -> bool:
    """Whether it is a rosbag2 directory or, by its first bytes, a file of a recording."""
    if path.is_dir():
        return (path / _METADATA).is_file()
    plain = path.with_suffix("").suffix in (".mcap", ".db3", ".bag")
    return _begins_with(path, *_MAGIC) or (plain and _begins_with(path, ZSTD_MAGIC))


class BagReader:
    """Reads a recording: rosbag2 directories, MCAP and SQLite files, ROS 1 bags.

    Files are known by their content. Messages or files that are compressed with zstd are unpacked,
    the files into a temporary folder while the bag is open. Topics that hold no ROS messages are
    left out, which is logged once.

    Args:
        bag: bag directory, or one file.

    Attributes:
        connections: topics, with as many messages as the bag declares.
        left_out: topics that are not read, with the reason.

    Raises:
        UserError: missing, or a directory that is no bag. Opened: truncated, damaged, or no
            recording; its metadata names files outside its directory; it unpacks to an unreasonable
            size.
    """

    def __init__(self, bag: Path) -> None:
        if not bag.exists():
            raise UserError(
                f"there is no bag '{bag}': give a rosbag2 directory, .mcap or .db3 file"
            )
        if bag.is_dir() and not (bag / _METADATA).is_file():
            raise UserError(
                f"'{bag}' is no rosbag2 recording, it has no metadata.yaml: give the bag's "
                "directory, or run `ros2 bag reindex` on it"
            )
        self.bag = bag
        self.connections: list[Connection] = []
        self.left_out: dict[str, str] = {}
        self._stack = ExitStack()
        self._unpacked: Path | None = None
        self._storages: list[tuple[Storage, dict[int, Connection]]] = []
        self._message_compression = False

    @property
    def message_count(self) -> int:
        """Messages that the bag declares, of all topics that are read."""
        return sum(connection.msgcount for connection in self.connections)

    def __enter__(self) -> BagReader:
        """Open the bag; raises UserError where it is damaged."""
        try:
            self._open()
        except UserError:
            self.close()
            raise
        except Exception as error:  # of bytes that are not what they seem: many kinds
            self.close()
            raise damaged(self.bag, error) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the bag."""
        self.close()

    def close(self) -> None:
        """Close the bag, also one that failed to open."""
        self._storages.clear()
        self._stack.close()
        self._unpacked = None

    def messages(
        self, connections: Collection[Connection] = ()
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """Connection, time in ns and content, unpacked, of each message, by time in each file.

        Args:
            connections: those to read; none for all.

        Raises:
            UserError: the bag is damaged; at the end: it declares more messages than there are.
        """
        wanted = connections or self.connections
        left = {connection.id: connection.msgcount for connection in wanted}
        try:
            for storage, taken in self._storages:
                ids = {id_ for id_, connection in taken.items() if connection.id in left}
                for id_, timestamp, raw in storage.messages(ids) if ids else ():
                    # SQLite's columns hold values of any type.
                    if type(timestamp) is not int or not 0 <= timestamp < 1 << 63:
                        raise ValueError("a message's time is none")
                    if type(raw) is not bytes:
                        raise ValueError("a message is none")
                    left[taken[id_].id] -= 1
                    data = unpack(raw, "zstd") if self._message_compression else raw
                    yield taken[id_], timestamp, data
        except Exception as error:
            raise damaged(self.bag, error) from error
        for connection in wanted:
            if (missing := left[connection.id]) > 0:
                declared, topic = connection.msgcount, one_line(connection.topic, 100)
                raise UserError(
                    f"bag '{self.bag}' declares {declared} messages on {topic}, only "
                    f"{declared - missing} are there: it is not whole, copy or recover it"
                )

    def _open(self) -> None:
        described = _read_metadata(self.bag) if self.bag.is_dir() else {}
        mode = str(described.get("compression_mode") or "").lower()
        kind = str(described.get("compression_format") or "zstd").lower()
        if mode in ("file", "message") and kind != "zstd":
            raise UserError(
                f"bag '{self.bag}' is compressed as {described['compression_format']!r}: "
                "convert it to zstd or no compression with `ros2 bag convert`"
            )
        self._message_compression = mode == "message"
        names = described.get("relative_file_paths")
        files = [self.bag] if names is None else [self.bag / PurePosixPath(x).name for x in names]
        opened = [self._open_storage(file) for file in files]
        declared = _declared(described)
        kinds = dict.fromkeys([*declared, *(_key(c) for s in opened for c in s.connections)])
        for number, key in enumerate(kinds, 1):
            same = [c for storage in opened for c in storage.connections if _key(c) == key]
            self.connections.append(_joined(number, key, same, declared.get(key)))
        by_key = {_key(connection): connection for connection in self.connections}
        self._storages = [(s, {c.id: by_key[_key(c)] for c in s.connections}) for s in opened]
        for storage in opened:
            self.left_out.update(storage.left_out)
        if self.left_out:
            listed = ", ".join(f"{topic} ({why})" for topic, why in self.left_out.items())
            say_once(
                f"bag '{self.bag}'", f"left out, no messages of ROS 2: {one_line(listed, 400)}"
            )

    def _open_storage(self, file: Path) -> Storage:
        if _begins_with(file, ZSTD_MAGIC):
            target = self._folder() / file.name.removesuffix(".zstd").removesuffix(".zst")
            unpack_file(file, target)
            file = target
        storage: Storage
        if _begins_with(file, mcap.MAGIC):
            storage = mcap.McapFile(file)
        elif _begins_with(file, sqlite.MAGIC):
            storage = sqlite.SqliteFile(file, self._folder)
        elif _begins_with(file, ros1.MAGIC):
            storage = ros1.Ros1File(file)
        else:
            raise ValueError(f"'{file.name}' is neither MCAP nor SQLite nor a ROS 1 bag")
        self._stack.callback(storage.close)
        return storage

    def _folder(self) -> Path:
        """Takes what must be unpacked or copied; removed when the bag is closed."""
        if self._unpacked is None:
            made = tempfile.TemporaryDirectory(prefix="anomaly-detector-bag-")
            self._unpacked = Path(self._stack.enter_context(made))
        return self._unpacked


def damaged(bag: Path, error: Exception) -> UserError:
    """The user's error for a bag that cannot be read."""
    return UserError(
        f"cannot read bag '{bag}', it is truncated, damaged or no rosbag2 recording "
        f"({one_line(error, 100)}): recover it or give another bag"
    )


def _begins_with(file: Path, *magic: bytes) -> bool:
    with file.open("rb") as stream:
        return stream.read(_BEGINNING).startswith(magic)


def _read_metadata(bag: Path) -> dict[str, Any]:
    """What metadata.yaml says, its file names checked: a bag that leads elsewhere is not read."""
    content = yaml.safe_load((bag / _METADATA).read_text("utf-8"))
    metadata: dict[str, Any] = content["rosbag2_bagfile_information"]
    for name in metadata["relative_file_paths"]:
        path = PurePosixPath(str(name))
        if path.is_absolute() or ".." in path.parts or "\\" in str(name):
            raise UserError(
                f"bag '{bag}' names a file outside its directory ({one_line(name, 60)!r}): "
                "give a bag that you trust"
            )
    return metadata


_Key = tuple[str, str]


def _key(connection: Connection) -> _Key:
    """What makes topics of several files one; their QoS may differ."""
    return connection.topic, connection.msgtype


def _declared(metadata: dict[str, Any]) -> dict[_Key, dict[str, Any]]:
    """What metadata.yaml, which may hold anything, says of each topic of CDR messages."""
    found: dict[_Key, dict[str, Any]] = {}
    for each in metadata.get("topics_with_message_count") or ():
        topic = each["topic_metadata"]
        if topic.get("serialization_format", "cdr") != "cdr":
            continue
        name, kind, count = topic["name"], topic["type"], each["message_count"]
        digest = topic.get("type_description_hash") or ""
        if not all(isinstance(text, str) for text in (name, kind, digest)) or not name:
            raise ValueError("a topic's name, type or hash is no text")
        if type(count) is not int:
            raise ValueError(f"the number of messages of {one_line(name, 60)} is none")
        same = found.setdefault(
            (name, message_type(kind)), {"digest": digest, "count": 0, "qos": []}
        )
        same["count"] += count
        same["qos"] += read_qos(topic.get("offered_qos_profiles"))
    return found


def _joined(
    number: int, key: _Key, same: list[Connection], declared: dict[str, Any] | None
) -> Connection:
    """One topic of several files, or of one where two cameras publish, and of the metadata."""
    said = declared or {"digest": "", "count": 0, "qos": []}
    qos = said["qos"] or max((offered_qos(c) for c in same), key=len, default=[])
    text = next((c.msgdef for c in same if c.msgdef.data), definition("", ""))
    digest = said["digest"] or next((c.digest for c in same if c.digest), "")
    count = max(said["count"], sum(c.msgcount for c in same))
    return Connection(number, *key, text, digest, count, ConnectionExtRosbag2("cdr", qos), None)


def offered_qos(connection: Connection) -> list[Qos]:
    """The QoS profiles that a topic was recorded with."""
    ext = connection.ext
    assert isinstance(ext, ConnectionExtRosbag2)  # those of ROS 1 are converted
    return ext.offered_qos_profiles


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
    bag: Path,
    topic: str | None = None,
    stride: int = 1,
    grey_range: Range | None = None,
    start: int = 0,
) -> Iterator[tuple[int, np.ndarray | ImageError]]:
    """As :func:`read_images`, with every `stride`-th frame from number `start` on.

    One that is no picture is its error.

    Raises:
        UserError: the bag or the topic is missing or unreadable.
    """
    with BagReader(bag) as reader:
        chosen = choose_topic(reader, topic)
        messages = reader.messages([c for c in reader.connections if c.topic == chosen])
        for connection, timestamp, raw in islice(messages, start, None, stride):
            picture: np.ndarray | ImageError
            try:
                message = deserialize(raw, connection.msgtype)
                picture = message_to_rgb(message, connection.msgtype, chosen, grey_range)
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


def message_to_rgb(
    message: Any, msgtype: str, topic: str, grey_range: Range | None = None
) -> np.ndarray:
    """RGB picture of an Image or CompressedImage message; what is odd of a topic is logged once."""
    to_rgb = image_to_rgb if msgtype == IMAGE else compressed_to_rgb
    return to_rgb(message, grey_range=grey_range, note=partial(say_once, topic))
