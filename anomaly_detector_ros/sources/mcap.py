"""MCAP files, read by their records, whatever indices they have or lack."""

from __future__ import annotations

import heapq
import struct
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
from rosbags.interfaces import Connection

from anomaly_detector_ros.sources.storage import connection, definition
from anomaly_detector_ros.sources.unpacking import unpack

MAGIC = b"\x89MCAP0\r\n"

_FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK = 0x02, 0x03, 0x04, 0x05, 0x06
_CHUNK_INDEX, _STATISTICS, _DATA_END = 0x08, 0x0B, 0x0F
_RECORD = struct.Struct("<BQ")  # operation, bytes of content
_MESSAGE_HEAD = struct.Struct("<HIQQ")  # channel, sequence, log time, publish time
_CHUNK_HEAD = struct.Struct("<QQQI")  # first and last time, size, check sum
_CHUNK_INDEX_HEAD = struct.Struct("<QQQQ")  # first and last time, offset, bytes
_FOOTER_BYTES = 20

_Message = tuple[int, int, bytes]  # channel, time, content


class _Channel(NamedTuple):
    """A channel record."""

    schema: int
    topic: str
    encoding: str
    metadata: dict[str, str]


class _Stream(NamedTuple):
    """Messages in the order of time: those of a chunk, or those outside of any."""

    start: int
    read: Callable[[Collection[int]], Iterator[_Message]]


class McapFile:
    """An open MCAP file; see `storage.Storage`.

    The data section is walked once, from record to record. Chunks that the summary tells of are
    passed over; all others, and messages outside of chunks, are found. Where the summary has no
    statistics, or not all channels, the chunks are unpacked once to count.

    Raises:
        ValueError: truncated or damaged, as may come struct.error and what decompressors raise.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._channels: dict[int, _Channel] = {}
        self._schemas: dict[int, tuple[str, str, str]] = {}
        self._counts: dict[int, int] | None = None
        self._indexed: dict[int, tuple[int, int]] = {}  # chunk's offset -> first time, end
        self._streams: list[_Stream] = []
        self._loose = array("Q"), array("Q"), array("H")  # time, offset, channel
        try:
            self._open()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """See `storage.Storage`."""
        self._file.close()

    def messages(self, ids: Collection[int]) -> Iterator[_Message]:
        """See `storage.Storage`; chunks are unpacked when their time has come."""
        waiting = sorted(range(len(self._streams)), key=lambda i: self._streams[i].start)
        waiting.reverse()
        ready: list[tuple[int, int, _Message, Iterator[_Message]]] = []
        while ready or waiting:
            if waiting and (not ready or self._streams[waiting[-1]].start <= ready[0][0]):
                number = waiting.pop()
                stream = self._streams[number].read(ids)
            else:
                _, number, message, stream = heapq.heappop(ready)
                yield message
            following = next(stream, None)
            if following is not None:
                heapq.heappush(ready, (following[1], number, following, stream))

    def _open(self) -> None:
        size = self._file.seek(0, 2)
        if size < 2 * len(MAGIC) + _RECORD.size + _FOOTER_BYTES or self._read(0, 8) != MAGIC:
            raise ValueError("it is too short or no MCAP file")
        footer = size - len(MAGIC) - _RECORD.size - _FOOTER_BYTES
        if self._read(size - 8, 8) != MAGIC:
            raise ValueError("its end is missing")
        if self._record(footer, size) != (_FOOTER, footer + _RECORD.size, _FOOTER_BYTES):
            raise ValueError("its footer is damaged")
        (summary,) = struct.unpack("<Q", self._read(footer + _RECORD.size, 8))
        if summary and not len(MAGIC) <= summary <= footer:
            raise ValueError("its summary lies nowhere")
        if summary:
            self._read_summary(summary, footer)
        self._walk(len(MAGIC), summary or footer)
        if self._counts is None or not self._counts.keys() <= self._channels.keys():
            self._count()
        times = self._loose[0]
        if times:
            self._streams.append(_Stream(min(times), self._read_loose))
        self.connections, self.left_out = self._topics()

    def _read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        data = self._file.read(size)
        if len(data) != size:
            raise ValueError("it ends early")
        return data

    def _record(self, offset: int, end: int) -> tuple[int, int, int]:
        """Operation, offset and bytes of the content of the record that begins there."""
        operation, size = _RECORD.unpack(self._read(offset, _RECORD.size))
        if size > end - offset - _RECORD.size:
            raise ValueError("a record is cut off")
        return operation, offset + _RECORD.size, size

    def _read_summary(self, offset: int, end: int) -> None:
        while offset < end:
            operation, start, size = self._record(offset, end)
            offset = start + size
            if operation in (_SCHEMA, _CHANNEL):
                self._describe(operation, self._read(start, size))
            elif operation == _CHUNK_INDEX:
                data = self._read(start, size)
                first, _, chunk, length = _CHUNK_INDEX_HEAD.unpack_from(data)
                (offsets,) = struct.unpack_from("<I", data, 32)
                (indices,) = struct.unpack_from("<Q", data, 36 + offsets)
                self._indexed[chunk] = first, chunk + length + indices
            elif operation == _STATISTICS:
                data = self._read(start, size)
                (messages,) = struct.unpack_from("<Q", data)
                counts = dict(struct.iter_unpack("<HQ", _sized(data, 42)))
                # Some writers give the sum alone.
                self._counts = counts if sum(counts.values()) == messages else None

    def _walk(self, offset: int, end: int) -> None:
        times, offsets, channels = self._loose
        while offset < end:
            if offset in self._indexed:
                first, following = self._indexed[offset]
                if not offset < following <= end:
                    raise ValueError("its chunk index is damaged")
                self._add_chunk(offset, first)
                offset = following
                continue
            operation, start, size = self._record(offset, end)
            if operation == _MESSAGE:
                channel, _, time, _ = _MESSAGE_HEAD.unpack(self._read(start, _MESSAGE_HEAD.size))
                times.append(time)
                offsets.append(offset)
                channels.append(channel)
            elif operation == _CHUNK:
                self._add_chunk(offset, *struct.unpack("<Q", self._read(start, 8)))
            elif operation in (_SCHEMA, _CHANNEL):
                self._describe(operation, self._read(start, size))
            elif operation == _DATA_END:
                return
            offset = start + size

    def _add_chunk(self, offset: int, first: int) -> None:
        self._streams.append(_Stream(first, lambda ids: self._read_chunk(offset, ids)))

    def _count(self) -> None:
        counts = Counter(self._loose[2])
        for stream in self._streams:
            counts.update(channel for channel, _, _ in stream.read(range(1 << 16)))
        self._counts = dict(counts)

    def _describe(self, operation: int, data: bytes) -> None:
        """Take a schema or a channel."""
        (number,) = struct.unpack_from("<H", data)
        if operation == _SCHEMA:
            name, language, text = (each.decode() for each in _strings(data, 2, 3))
            self._schemas[number] = name, language, text
        else:
            (schema,) = struct.unpack_from("<H", data, 2)
            topic, encoding, pairs = _strings(data, 4, 3)
            texts = [each.decode(errors="replace") for each in _strings(pairs, 0)]
            metadata = dict(zip(texts[::2], texts[1::2], strict=True))
            self._channels[number] = _Channel(schema, topic.decode(), encoding.decode(), metadata)

    def _read_chunk(self, offset: int, ids: Collection[int]) -> Iterator[_Message]:
        operation, start, size = self._record(offset, self._file.seek(0, 2))
        if operation != _CHUNK:
            raise ValueError("its chunk index is damaged")
        data = self._read(start, size)
        _, _, unpacked, check = _CHUNK_HEAD.unpack_from(data)
        kind = _sized(data, _CHUNK_HEAD.size)
        (packed,) = struct.unpack_from("<Q", data, _CHUNK_HEAD.size + 4 + len(kind))
        begin = _CHUNK_HEAD.size + 12 + len(kind)
        if packed > len(data) - begin:
            raise ValueError("a chunk is cut off")
        content = unpack(data[begin : begin + packed], kind.decode(), unpacked)
        if len(content) != unpacked or (check and crc32(content) != check):
            raise ValueError("a chunk is damaged: its size or check sum is another")
        found: list[_Message] = []
        position = 0
        while position < len(content):
            operation, size = _RECORD.unpack_from(content, position)
            position += _RECORD.size
            if size > len(content) - position:
                raise ValueError("a record is cut off")
            record = content[position : position + size]
            position += size
            if operation == _MESSAGE:
                channel, _, time, _ = _MESSAGE_HEAD.unpack_from(record)
                self._check(channel)
                if channel in ids:
                    found.append((channel, time, record[_MESSAGE_HEAD.size :]))
            elif operation in (_SCHEMA, _CHANNEL):
                self._describe(operation, record)
        found.sort(key=lambda message: message[1])
        return iter(found)

    def _read_loose(self, ids: Collection[int]) -> Iterator[_Message]:
        times, offsets, channels = self._loose
        end = self._file.seek(0, 2)
        for index in np.argsort(np.frombuffer(times, np.uint64), kind="stable"):
            channel = channels[index]
            self._check(channel)
            if channel in ids:
                _, start, size = self._record(offsets[index], end)
                yield channel, times[index], self._read(start, size)[_MESSAGE_HEAD.size :]

    def _check(self, channel: int) -> None:
        if channel not in self._channels:
            raise ValueError(f"a message is of channel {channel}, which nothing describes")

    def _topics(self) -> tuple[list[Connection], dict[str, str]]:
        taken, left_out = [], {}
        for number, channel in sorted(self._channels.items()):
            name, encoding, text = self._schemas.get(channel.schema, ("", "", ""))
            described = definition(encoding, text)
            if channel.encoding == "cdr" or (not channel.encoding and described.data):
                digest = channel.metadata.get("topic_type_hash", "")
                count = (self._counts or {}).get(number, 0)
                qos = channel.metadata.get("offered_qos_profiles", "")
                taken.append(connection(number, channel.topic, name, described, digest, count, qos))
            else:
                left_out[channel.topic] = channel.encoding or encoding or "an unknown encoding"
        return taken, left_out


def _sized(data: bytes, position: int) -> bytes:
    """Bytes behind their number, 32 bits."""
    (size,) = struct.unpack_from("<I", data, position)
    if size > len(data) - position - 4:
        raise ValueError("a record is damaged")
    return data[position + 4 : position + 4 + size]


def _strings(data: bytes, position: int, count: int | None = None) -> list[bytes]:
    """So many of them, or all."""
    found: list[bytes] = []
    while position < len(data) if count is None else len(found) < count:
        found.append(_sized(data, position))
        position += 4 + len(found[-1])
    return found
