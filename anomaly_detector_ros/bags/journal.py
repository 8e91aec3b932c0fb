"""What an interrupted run over a bag has finished, so that a later one need not do it again."""

from __future__ import annotations

import fcntl
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from anomaly_detector_ros.errors import UserError

_MAGIC = b"anomaly-detector bag journal 3\n"
_RECORD = struct.Struct("<IQI")  # bytes of the head, bytes in all, check sum


@dataclass
class FrameResult:
    """A finished frame.

    Attributes:
        messages: serialised outputs by name, in the order in which they are written.
        error: why there are none; "" where there are.
        unreadable: whether that is the frame's fault, not the models'.
        level: `Detection.level`, which counts for the frames behind it.
        score: `Detection.score`.
        anomalous: share of its pixels in the mask.
        timings: `Detection.timings`.
    """

    messages: dict[str, bytes | memoryview] = field(default_factory=dict)
    error: str = ""
    unreadable: bool = False
    level: float = 0.0
    score: float = 0.0
    anomalous: float = 0.0
    timings: dict[str, float] = field(default_factory=dict)


class BagJournal:
    """An append-only file of finished frames, in the bag's order; a context manager.

    A killed process leaves all that it appended and perhaps a part of a record, which is cut off.

    Args:
        path: the file; made if it is not there.
        job: what the results depend on, as JSON holds it.
        resume: go on from what the file holds, rather than empty it.

    Attributes:
        left: frames that an earlier run left.
        finished: frames that the file holds.

    Raises:
        UserError: another process is writing it; it is of another job.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, job: Mapping[str, Any], *, resume: bool) -> None:
        self.left = self.finished = self._taken = 0
        self._file: BinaryIO = open(path, "a+b")  # noqa: SIM115 - closed by __exit__
        try:
            self._lock(path)
            start = self._begin(path, json.loads(json.dumps(job, default=str)), resume)
            self._file.seek(start)
            self.left = self.finished
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> BagJournal:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file; it stays."""
        self._file.close()

    def next(self) -> FrameResult | None:
        """The next of the frames `left`, all of which are taken before any is added; then None."""
        if self._taken == self.left:
            return None
        self._taken += 1
        result = _read(self._file)
        if result is None:
            raise OSError("the journal changed while it was read")
        return result

    def append(self, result: FrameResult) -> None:
        """Add a finished frame; raises OSError."""
        write_result(self._file, result)
        self._file.flush()
        self.finished += 1

    def _lock(self, path: Path) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another process is writing '{path.parent}': wait for it or give another output"
            ) from error

    def _begin(self, path: Path, job: Mapping[str, Any], resume: bool) -> int:
        """Count what can be kept, cut off the rest, and give the position of the first record."""
        self._file.seek(0)
        first, second = self._file.readline(), self._file.readline()
        if not resume or first != _MAGIC or not second.endswith(b"\n"):
            self._file.truncate(0)
            self._file.write(_MAGIC + json.dumps(job).encode() + b"\n")
            self._file.flush()
            return self._file.tell()
        earlier = json.loads(second)
        different = [key for key in job if job[key] != earlier.get(key)]
        if different:
            raise UserError(
                f"the interrupted run in '{path.parent}' had another {different[0]}: give it as "
                "before, or start anew without --resume"
            )
        start = end = self._file.tell()
        while _read(self._file) is not None:
            self.finished += 1
            end = self._file.tell()
        self._file.truncate(end)
        return start


def write_result(file: BinaryIO, result: FrameResult) -> None:
    """Write a record of a finished frame; raises OSError."""
    sizes = [(name, len(data)) for name, data in result.messages.items()]
    about = {key: value for key, value in vars(result).items() if key != "messages"}
    head = json.dumps({"messages": sizes, "about": about}).encode()
    parts = [head, *result.messages.values()]
    check = 0
    for part in parts:
        check = zlib.crc32(part, check)
    file.write(_RECORD.pack(len(head), sum(len(part) for part in parts), check))
    for part in parts:
        file.write(part)


def read_results(file: Path) -> Iterator[FrameResult]:
    """The finished frames of a file of records alone; raises OSError where it is not whole."""
    with file.open("rb") as stream:
        end = 0
        while (result := _read(stream)) is not None:
            end = stream.tell()
            yield result
        if end != stream.seek(0, 2):
            raise OSError(f"'{file.name}' is damaged")


def _read(file: BinaryIO) -> FrameResult | None:
    """The next whole record; None where there is none."""
    begin = file.read(_RECORD.size)
    if len(begin) < _RECORD.size:
        return None
    head_size, size, check = _RECORD.unpack(begin)
    here = file.tell()
    left = file.seek(0, 2) - here
    file.seek(here)
    if not head_size <= size <= left:
        return None
    content = memoryview(file.read(size))
    if zlib.crc32(content) != check:
        return None
    head, data = json.loads(bytes(content[:head_size])), content[head_size:]
    messages: dict[str, bytes | memoryview] = {}
    start = 0
    for name, length in head["messages"]:
        messages[name] = data[start : start + length]
        start += length
    return FrameResult(messages, **head["about"])
