"""ROS 1 bags, their messages as ROS 2 has them."""

from __future__ import annotations

import bz2
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lz4 import frame as lz4
from rosbags.interfaces import Connection, MessageDefinition, MessageDefinitionFormat
from rosbags.rosbag1 import Reader
from rosbags.rosbag1.reader import Chunk
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from anomaly_detector_ros.sources.storage import connection
from anomaly_detector_ros.sources.unpacking import unpack

MAGIC = b"#ROSBAG V2.0"


class Ros1File:
    """An open ROS 1 bag; see `storage.Storage`.

    Messages of types that ROS 2 defines alike are read, others left out.

    Raises:
        Exception: rosbags' own, where it is damaged or has no index.
    """

    def __init__(self, path: Path) -> None:
        self._reader = _BoundedReader(path)
        self._store = get_typestore(Stores.ROS2_HUMBLE)
        self.connections, self.left_out = [], {}
        self._reader.open()
        for each in self._reader.connections:
            if not self._alike(each):
                self.left_out[each.topic] = f"{each.msgtype} of ROS 1"
                continue
            text, _ = self._store.generate_msgdef(each.msgtype, ros_version=2)
            digest = self._store.hash_rihs01(each.msgtype)
            described = MessageDefinition(MessageDefinitionFormat.MSG, text)
            self.connections.append(
                connection(each.id, each.topic, each.msgtype, described, digest, each.msgcount, "")
            )

    def close(self) -> None:
        """See `storage.Storage`."""
        self._reader.close()

    def _alike(self, each: Connection) -> bool:
        """Whether ROS 2 has the type with the same fields in the same order."""
        old, new = get_typestore(Stores.ROS1_NOETIC), self._store
        if each.msgtype not in new.types or each.msgtype not in old.types:
            return False
        if old.generate_msgdef(each.msgtype, ros_version=1)[1] != each.digest:
            return False
        return _fields(old, each.msgtype) == _fields(new, each.msgtype)

    def messages(self, ids: Collection[int]) -> Iterator[tuple[int, int, bytes]]:
        """See `storage.Storage`."""
        wanted = [each for each in self._reader.connections if each.id in ids]
        for each, time, raw in self._reader.messages(wanted):
            yield each.id, time, bytes(self._store.ros1_to_cdr(raw, each.msgtype))


def _fields(store: Typestore, msgtype: str) -> list[Any]:
    """Kinds of a type's fields, in order, of those that it holds too."""
    found: list[Any] = []
    for name, kind in store.fielddefs[msgtype][1]:
        if (msgtype, name) != ("std_msgs/msg/Header", "seq"):  # which ROS 2 has left out
            found.append([name.lower(), repr(kind), *_nested(store, kind)])
    return found


def _nested(store: Typestore, kind: Any) -> list[Any]:
    if isinstance(kind, tuple):
        return [each for part in kind for each in _nested(store, part)]
    return _fields(store, kind) if isinstance(kind, str) and kind in store.fielddefs else []


class _BoundedReader(Reader):
    """rosbags' reader, whose chunks may unpack to anything."""

    def read_chunk(self) -> Chunk:
        chunk = super().read_chunk()
        for kind, unbounded in (("bz2", bz2.decompress), ("lz4", lz4.decompress)):
            if chunk.decompressor is unbounded:
                return chunk._replace(decompressor=partial(unpack, kind=kind))
        return chunk
