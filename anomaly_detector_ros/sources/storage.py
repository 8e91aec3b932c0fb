"""What the files of recordings have in common, whatever wrote them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Any, Protocol

from rosbags.interfaces import (
    Connection,
    ConnectionExtRosbag2,
    MessageDefinition,
    MessageDefinitionFormat,
    Qos,
)
from rosbags.rosbag2.metadata import parse_qos
from rosbags.typesys.msg import normalize_msgtype

_FORMATS = {
    "ros2msg": MessageDefinitionFormat.MSG,
    "ros2idl": MessageDefinitionFormat.IDL,
    "omgidl": MessageDefinitionFormat.IDL,
}


class Storage(Protocol):
    """One open file of a recording.

    Attributes:
        connections: topics of ROS 2 messages in CDR, with as many messages as the file declares.
        left_out: why other topics are not read, by name.
    """

    connections: list[Connection]
    left_out: dict[str, str]

    def messages(self, ids: Collection[int]) -> Iterator[tuple[int, int, bytes]]:
        """Connection's id, time in ns and content of each message of these, by time."""

    def close(self) -> None:
        """Close the file."""


def connection(
    id_: int,
    topic: str,
    msgtype: str,
    definition: MessageDefinition,
    digest: str,
    messages: int,
    qos: Any,
) -> Connection:
    """A topic of CDR messages; QoS profiles as recorded: YAML, or what it holds."""
    ext = ConnectionExtRosbag2("cdr", read_qos(qos))
    return Connection(id_, topic, message_type(msgtype), definition, digest, messages, ext, None)


def message_type(name: str) -> str:
    """The type's name as ROS 2 has it; some writers give that of ROS 1, without /msg/."""
    return normalize_msgtype(name) if name.count("/") == 1 else name


def definition(encoding: str, text: str) -> MessageDefinition:
    """A message definition as recorded; none where it is of another schema language."""
    found = _FORMATS.get(encoding, MessageDefinitionFormat.NONE)
    return MessageDefinition(found, text if found is not MessageDefinitionFormat.NONE else "")


def read_qos(profiles: Any) -> list[Qos]:
    """QoS profiles as recorded; none where they cannot be read, as messages can without."""
    with suppress(Exception):
        return parse_qos(profiles)
    return []
