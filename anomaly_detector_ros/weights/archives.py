"""One member of a wheel or an npm tarball, read by its exact name, never extracted by path."""

from __future__ import annotations

import contextlib
import errno
import gzip
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from anomaly_detector_ros.errors import one_line
from anomaly_detector_ros.weights.landing import Landing, SourceError, read_chunks

# Tarballs are read in order; this bounds what a hostile one can make us unpack on the way.
_SCAN_FACTOR = 64
_BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError,
)  # fmt: skip


def land_wheel_member(archive: Path, member: str, landing: Landing) -> None:
    """Bring the regular file `member` of a wheel (zip) to `landing`; its size must be as declared.

    Raises:
        SourceError: no such member, a link or a directory, another size, or a broken archive.
    """
    with _readable(archive), zipfile.ZipFile(archive) as package:
        try:
            info = package.getinfo(member)
        except KeyError:
            raise SourceError(f"no file {member} in the package") from None
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.is_dir() or kind not in (0, stat.S_IFREG):
            raise SourceError(f"{member} is not a regular file in the package")
        _check_size(member, info.file_size, landing)
        with package.open(info) as stream:
            landing.receive(_content(cast(BinaryIO, stream)))


def land_tar_member(archive: Path, member: str, landing: Landing) -> None:
    """Bring the regular file `member` of a gzipped tarball to `landing`; as `land_wheel_member`."""
    limit = _SCAN_FACTOR * max(archive.stat().st_size, 1 << 20)
    with _readable(archive), tarfile.open(archive, "r:gz") as package:
        for info in package:
            if info.name == member:
                break
            if info.offset_data + info.size > limit:
                raise SourceError("the package unpacks to an unreasonable size")
        else:
            raise SourceError(f"no file {member} in the package")
        if not info.isreg():
            raise SourceError(f"{member} is not a regular file in the package")
        _check_size(member, info.size, landing)
        stream = package.extractfile(info)
        if stream is None:
            raise SourceError(f"{member} is not a regular file in the package")
        with stream:
            landing.receive(_content(cast(BinaryIO, stream)))


def _check_size(member: str, size: int, landing: Landing) -> None:
    if size != landing.size:
        raise SourceError(f"{member} has {size} bytes, not the {landing.size} declared")


def _content(stream: BinaryIO) -> Iterator[bytes]:
    with _broken_archive():
        yield from read_chunks(stream)


@contextlib.contextmanager
def _broken_archive() -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        raise SourceError(f"the package is broken ({one_line(error, 120)})") from error
    except (NotImplementedError, RuntimeError) as error:  # unknown compression, encryption
        raise SourceError(f"the package cannot be read ({one_line(error, 120)})") from error
    except OSError as error:
        # A position before the start of the file; any other error is the disk's.
        if error.errno != errno.EINVAL:
            raise
        raise SourceError(f"the package is broken ({one_line(error, 120)})") from error


@contextlib.contextmanager
def _readable(archive: Path) -> Iterator[None]:
    if not archive.is_file():
        raise SourceError(f"{archive.name} is not there")
    with _broken_archive():
        yield
