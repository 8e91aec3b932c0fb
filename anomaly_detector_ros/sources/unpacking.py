"""Compressed data unpacked within bounds: what comes in may be hostile."""

from __future__ import annotations

import bz2
import shutil
from pathlib import Path
from typing import Any

from backports import zstd
from lz4.frame import LZ4FrameDecompressor

from anomaly_detector_ros.errors import UserError

MAX_MESSAGE_BYTES = 1 << 30
"""Compressed messages and chunks that unpack to more are refused."""

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

# A recording unpacks to a few times its size; this bounds what a hostile one can do to the disk.
_FILE_FACTOR = 200
_FILE_SLACK_BYTES = 64 << 20
_DECOMPRESSORS: dict[str, Any] = {
    "zstd": zstd.ZstdDecompressor,
    "lz4": LZ4FrameDecompressor,
    "bz2": bz2.BZ2Decompressor,
}


def unpack(data: bytes, kind: str, limit: int | None = None) -> bytes:
    """The content of one compressed frame.

    Args:
        data: the frame.
        kind: "zstd", "lz4", "bz2", or "" for what is not compressed.
        limit: bytes that it may have; never more than :data:`MAX_MESSAGE_BYTES`.

    Raises:
        ValueError: another kind; it is cut off, or has more bytes, of which no more are made.
        Exception: the library's own, where it is no such frame.
    """
    if not kind:
        return data
    if kind not in _DECOMPRESSORS:
        raise ValueError(f"compressed as {kind!r}, which is not supported")
    most = MAX_MESSAGE_BYTES if limit is None else min(limit, MAX_MESSAGE_BYTES)
    decompressor = _DECOMPRESSORS[kind]()
    content = decompressor.decompress(data, max_length=most + 1)
    if len(content) > most:
        raise ValueError(f"compressed data unpacks to more than {most} bytes")
    if not decompressor.eof:
        raise ValueError("compressed data is cut off")
    return bytes(content)


def unpack_file(source: Path, target: Path) -> None:
    """Unpack a file compressed with zstd, up to a size that a recording may have.

    Raises:
        UserError: it is larger, or there is no room.
        Exception: the library's own, where it is cut off or damaged.
    """
    limit = _FILE_FACTOR * source.stat().st_size + _FILE_SLACK_BYTES
    free = shutil.disk_usage(target.parent).free
    done = 0
    with zstd.open(source, "rb") as stream, target.open("wb") as out:
        while block := stream.read(1 << 20):
            done += len(block)
            if done > limit:
                raise UserError(
                    f"'{source}' unpacks to more than {limit} bytes, over {_FILE_FACTOR} times "
                    "its size: give a bag that you trust"
                )
            if done > free:
                raise no_room(source, target)
            out.write(block)


def no_room(source: Path, target: Path) -> UserError:
    """The user's error for a temporary copy that the disk has no room for."""
    return UserError(
        f"no room in '{target.parent.parent}' to unpack '{source}': make room or set TMPDIR to "
        "another disk"
    )
