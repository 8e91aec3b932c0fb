"""The connections of a bag as they are in a new one: schemas, type hashes and QoS profiles."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Any

from rosbags.interfaces import Connection
from rosbags.rosbag2 import Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from anomaly_detector_ros.bags.reader import BagReader

_NO_HASH = "RIHS01_" + "0" * 64


def add_copies(
    reader: BagReader, writer: Writer, *, leave_out: Collection[str]
) -> dict[int, Connection]:
    """Output connections by the id of the input connection that they copy.

    Args:
        reader: the open input.
        writer: the open output.
        leave_out: topics that are not copied.
    """
    copies: dict[int, Connection] = {}
    added: list[tuple[str, str, Any, Connection]] = []
    for connection in reader.connections:
        topic, msgtype, ext = connection.topic, connection.msgtype, connection.ext
        if topic in leave_out:
            continue
        # rosbags refuses a second connection that differs in nothing.
        twin = next((c for t, m, e, c in added if (t, m, e) == (topic, msgtype, ext)), None)
        if twin is None:
            msgdef, digest = _definition(connection)
            twin = writer.add_connection(
                topic,
                msgtype,
                msgdef=msgdef,
                rihs01=digest,
                serialization_format=ext.serialization_format,
                offered_qos_profiles=ext.offered_qos_profiles,
            )
            added.append((topic, msgtype, ext, twin))
        copies[connection.id] = twin
    return copies


def _definition(connection: Connection) -> tuple[str, str]:
    """Message definition and type hash of a connection, found again where the bag lacks them."""
    text, digest = connection.msgdef.data, connection.digest
    if text and digest:
        return text, digest
    with suppress(Exception):
        store = get_typestore(Stores.ROS2_JAZZY)
        if connection.msgtype not in store.types and text:
            store.register(get_types_from_msg(text, connection.msgtype))
        generated, _ = store.generate_msgdef(connection.msgtype, ros_version=2)
        return text or generated, digest or store.hash_rihs01(connection.msgtype)
    # A type that nothing describes; old releases recorded none and play it back all the same.
    return text, digest or _NO_HASH
