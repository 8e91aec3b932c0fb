"""rosbags' reader, with bounds on what a bag can make it do and errors that say what is wrong."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import yaml
from backports import zstd
from lz4.frame import LZ4FrameDecompressor
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader, reader, storage_mcap

from anomaly_detector_ros.errors import UserError, one_line

MAX_MESSAGE_BYTES = 1 << 30
"""Compressed messages and chunks that unpack to more are refused."""

# A recording unpacks to a few times its size; this bounds what a hostile one can do to the disk.
_FILE_FACTOR = 200
_FILE_SLACK_BYTES = 64 << 20
_METADATA = "metadata.yaml"


def unpack_zstd(data: bytes, limit: int) -> bytes:
    """One zstd frame's content.

    Raises:
        ValueError: it is cut off, or has more than `limit` bytes, of which no more are made.
        ZstdError: it is no zstd frame.
    """
    return _unpack(zstd.ZstdDecompressor(), data, limit)


def _unpack(decompressor: Any, data: bytes, limit: int) -> bytes:
    content = decompressor.decompress(data, max_length=limit + 1)
    if len(content) > limit:
        raise ValueError(f"compressed data unpacks to more than {limit} bytes")
    if not decompressor.eof:
        raise ValueError("compressed data is cut off")
    return bytes(content)


def _bounded(decompressor: Callable[[], Any]) -> Callable[[bytes, int], bytes]:
    return lambda data, declared: _unpack(decompressor(), data, min(declared, MAX_MESSAGE_BYTES))


def _bounded_storage_mcap() -> ModuleType:
    """A copy of rosbags' MCAP module that unpacks chunks within bounds.

    rosbags unpacks a chunk to whatever size it has and then compares with the declared one. Its
    table of decompressors is the module's, so a change there would hold for every user of rosbags
    in the process.
    """
    name = f"{storage_mcap.__name__}_bounded"
    spec = importlib.util.spec_from_file_location(name, storage_mcap.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their annotations up there
    spec.loader.exec_module(module)
    bounded = {"zstd": zstd.ZstdDecompressor, "lz4": LZ4FrameDecompressor}
    module.DECOMPRESSORS.update({kind: _bounded(made) for kind, made in bounded.items()})
    return module


_MCAP = _bounded_storage_mcap().McapReader


class _DirectoryReader(reader.DirectoryReader):
    STORAGE_PLUGINS = {**reader.DirectoryReader.STORAGE_PLUGINS, "mcap": _MCAP}  # noqa: RUF012


class BagReader(Reader):
    """rosbags' reader that tells what is wrong with a bag in one line.

    Reads bags whose messages or files are compressed with zstd, too; those of compressed files are
    unpacked into a temporary folder while the bag is open.

    Args:
        bag: bag directory, or one .mcap or .db3 file.

    Raises:
        UserError: missing, truncated, damaged, or no rosbag2 recording; its metadata names files
            outside its directory; it unpacks to an unreasonable size.
    """

    STORAGE_PLUGINS = {  # noqa: RUF012
        **Reader.STORAGE_PLUGINS,
        "dir": _DirectoryReader,
        ".mcap": _MCAP,
    }

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
        self._unpacked: tempfile.TemporaryDirectory[str] | None = None
        self._message_compression = False
        try:
            super().__init__(bag)
        except Exception as error:
            raise damaged(bag, error) from error

    def open(self) -> None:
        """Open the bag; raises UserError where it is damaged."""
        try:
            if self.bag.is_dir():
                self._prepare(_read_metadata(self.bag))
            super().open()
            _check_types(self.connections)
        except UserError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise damaged(self.bag, error) from error

    def close(self) -> None:
        """Close the bag, also one that failed to open."""
        # What failed to be read can fail to be closed; the first error is the one to tell.
        with suppress(Exception):
            super().close()
        if self._unpacked is not None:
            self._unpacked.cleanup()
            self._unpacked = None

    def messages(
        self,
        connections: Collection[Connection] = (),
        start: int | None = None,
        stop: int | None = None,
    ) -> Generator[tuple[Connection, int, bytes], None, None]:
        """As rosbags' own: connection, timestamp in ns and content of each message, unpacked.

        Raises:
            UserError: the storage is damaged.
        """
        try:
            for connection, timestamp, raw in super().messages(connections, start, stop):
                # SQLite's columns hold values of any type.
                if type(timestamp) is not int or not 0 <= timestamp < 1 << 63:
                    raise ValueError("a message's time is none")
                if type(raw) is not bytes:
                    raise ValueError("a message is none")
                data = unpack_zstd(raw, MAX_MESSAGE_BYTES) if self._message_compression else raw
                yield connection, timestamp, data
        except Exception as error:  # rosbags raises many kinds on bytes that are not what they seem
            raise damaged(self.bag, error) from error

    def _prepare(self, metadata: dict[str, Any]) -> None:
        """Let rosbags open a copy that is described as not compressed, where the bag is.

        rosbags unpacks without a bound, so it is done here.
        """
        mode = str(metadata.get("compression_mode") or "").lower()
        if mode not in ("file", "message"):
            return
        if str(metadata.get("compression_format") or "").lower() != "zstd":
            raise UserError(
                f"bag '{self.bag}' is compressed as {metadata.get('compression_format')!r}: "
                "convert it to zstd or no compression with `ros2 bag convert`"
            )
        self._unpacked = tempfile.TemporaryDirectory(prefix="anomaly-detector-bag-")
        folder = Path(self._unpacked.name)
        names = [PurePosixPath(path).name for path in metadata["relative_file_paths"]]
        plain = [name.removesuffix(".zstd") if mode == "file" else name for name in names]
        for name, target in zip(names, plain, strict=True):
            if mode == "file":
                _unpack_file(self.bag / name, folder / target)
            else:
                (folder / target).symlink_to((self.bag / name).resolve())
        described = {**metadata, "compression_mode": "", "relative_file_paths": plain}
        described["compression_format"] = ""
        text = yaml.safe_dump({"rosbag2_bagfile_information": described})
        (folder / _METADATA).write_text(text, "utf-8")
        self._message_compression = mode == "message"
        super().__init__(folder)


def damaged(bag: Any, error: Exception) -> UserError:
    """The user's error for a bag that rosbags fails on."""
    return UserError(
        f"cannot read bag '{bag}', it is truncated, damaged or no rosbag2 recording "
        f"({one_line(error, 100)}): recover it or give another bag"
    )


def _read_metadata(bag: Path) -> dict[str, Any]:
    """What metadata.yaml says, its file names checked.

    rosbags strips folders off the names; a bag that has such names is not to be trusted.
    """
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


def _check_types(connections: Sequence[Connection]) -> None:
    """What metadata.yaml gives for topics may be anything that YAML can hold."""
    for connection in connections:
        texts = (connection.topic, connection.msgtype, connection.digest)
        if not all(isinstance(text, str) for text in texts) or not connection.topic:
            raise ValueError("a topic's name, type or hash is no text")
        if type(connection.msgcount) is not int:
            raise ValueError(f"the number of messages of {connection.topic} is none")


def _unpack_file(source: Path, target: Path) -> None:
    """Unpack a file compressed with zstd, up to a size that a recording may have."""
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
                raise UserError(
                    f"no room in '{target.parent.parent}' to unpack '{source}': make room or set "
                    "TMPDIR to another disk"
                )
            out.write(block)
