"""Where one downloaded file lands: a `.partial` beside its final name, checked, then renamed."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from anomaly_detector_ros.errors import one_line

CHUNK = 1 << 18

DownloadProgress = Callable[[str, int, int], None]
"""Called as `progress(name, bytes done, bytes total)`; a total of 0 means that it is not known."""


class SourceError(Exception):
    """One source could not give the file; the next one may.

    `remedy` is what the user can do about it ("" if nothing special). `transient` marks a
    failure that may pass when the same source is asked again. `status` is the HTTP status, or 0.
    """

    def __init__(
        self, message: str, *, remedy: str = "", transient: bool = False, status: int = 0
    ) -> None:
        super().__init__(one_line(message))
        self.remedy = remedy
        self.transient = transient
        self.status = status


class WrongContentError(SourceError):
    """What came is not the declared file: too long, or another sha256. It is thrown away."""


def read_chunks(stream: IO[bytes]) -> Iterable[bytes]:
    """Blocks of `stream` up to its end; an OSError of the stream becomes a SourceError."""
    while True:
        try:
            chunk = stream.read(CHUNK)
        except OSError as error:
            raise SourceError(f"cannot be read ({error.strerror or error})") from error
        if not chunk:
            return
        yield chunk


@dataclass(frozen=True)
class Landing:
    """The declared file: final path, size in bytes, hex sha256, and who hears of the progress."""

    path: Path
    name: str
    size: int
    sha256: str
    progress: DownloadProgress | None = None

    @property
    def partial(self) -> Path:
        """The file's name while it is incomplete."""
        return self.path.with_name(self.path.name + ".partial")

    def resumable(self) -> int:
        """Bytes of an interrupted download that can be kept; a too long one is deleted."""
        try:
            size = self.partial.stat().st_size
        except FileNotFoundError:
            return 0
        if size > self.size:
            self.partial.unlink()
            return 0
        return size

    def receive(self, chunks: Iterable[bytes], *, offset: int = 0, keep: bool = False) -> None:
        """Write `chunks` after the first `offset` bytes already in the partial, check, rename.

        Never takes more than the declared size. With `keep` an interrupted partial stays for a
        later resume; a wrong one never does, nor one that did not fit on the disk.

        Raises:
            WrongContentError: too many bytes, or another sha256.
            SourceError: too few bytes, or what `chunks` raises.
            OSError: the disk, not the source, failed.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(self.partial, "r+b" if offset else "wb") as out:
                self._write(out, chunks, offset)
                out.flush()
                os.fsync(out.fileno())
            os.replace(self.partial, self.path)
            # The rename is only safe from a power cut once the directory is on disk.
            with contextlib.suppress(OSError):
                folder = os.open(self.path.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
        except BaseException as error:
            if not keep or isinstance(error, (WrongContentError, OSError)):
                self.partial.unlink(missing_ok=True)
            raise

    def _write(self, out: BinaryIO, chunks: Iterable[bytes], offset: int) -> None:
        digest = hashlib.sha256()
        done = 0
        while done < offset:
            chunk = out.read(min(CHUNK, offset - done))
            if not chunk:
                raise WrongContentError("the partial file shrank while it was read")
            digest.update(chunk)
            done += len(chunk)
        out.seek(done)
        out.truncate()
        self.report(done)
        for chunk in chunks:
            done += len(chunk)
            if done > self.size:
                raise WrongContentError(f"sends more than the {self.size} bytes declared")
            out.write(chunk)
            digest.update(chunk)
            self.report(done)
        if done < self.size:
            raise SourceError(f"ended after {done} of {self.size} bytes", transient=True)
        if digest.hexdigest() != self.sha256:
            raise WrongContentError(f"sha256 is {digest.hexdigest()}, not {self.sha256}")

    def report(self, done: int) -> None:
        """Tell the listener how many of the file's bytes are there."""
        if self.progress:
            self.progress(self.name, done, self.size)
