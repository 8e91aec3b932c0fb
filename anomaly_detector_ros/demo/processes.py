"""Child processes of a small ROS graph of their own, ended with their parent in every case."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.runtime.environment import ALLOCATOR, fastdds_environment, fastdds_profile

_PR_SET_PDEATHSIG = 1
_PATIENCE = {signal.SIGINT: 10.0, signal.SIGTERM: 5.0, signal.SIGKILL: 5.0}


_domain_holders: list[socket.socket] = []


@functools.cache
def own_domain() -> int:
    """A ROS domain for the graph of this process, held until the process ends.

    A Unix socket with a name in the abstract namespace holds it: only one process can have that
    name, no file stays behind, and the name reaches as far as the loopback device does.

    Raises:
        UserError: all are taken.
    """
    # Ports of domains over 101 can meet those of outgoing connections; people choose low numbers.
    for domain in range(100, 9, -1):
        holder = socket.socket(socket.AF_UNIX)
        try:
            holder.bind(f"\0anomaly_detector_ros/domain/{domain}")
        except OSError:
            holder.close()
        else:
            _domain_holders.append(holder)
            return domain
    raise UserError("all ROS domains from 10 to 100 are taken: end other demos or tests")


def graph_environment(logs: Path, domain: int | None = None) -> dict[str, str]:
    """Environment of processes that see each other and nothing beyond this machine.

    Args:
        logs: directory for ROS logs.
        domain: ROS domain; by default this process's own, see `own_domain`.
    """
    # What the user set goes before.
    environment = {**ALLOCATOR, **fastdds_environment(fastdds_profile()), **os.environ}
    environment |= {
        "ROS_DOMAIN_ID": str(own_domain() if domain is None else domain),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_LOG_DIR": str(logs),
        "PYTHONUNBUFFERED": "1",
    }
    if environment.get("ROS_DISTRO", "") in ("humble", "galactic", "foxy"):
        # Later releases warn of it and go by the discovery range.
        environment["ROS_LOCALHOST_ONLY"] = "1"
    # A child has to find this package when it runs from a source checkout, too.
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    return environment


class ProcessGroup:
    """Processes that end, in reverse order of their start, when the with block does.

    Args:
        environment: theirs.
        logs: directory for their output, NAME.log each.
    """

    def __init__(self, environment: Mapping[str, str], logs: Path) -> None:
        self._environment, self._logs = environment, logs
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in reversed(list(self._processes)):
            self.stop(name)

    def start(self, name: str, module: str, *arguments: str) -> None:
        """Run `python -m module arguments` in the background."""
        command = [sys.executable, "-m", module, *arguments]
        with self._log(name).open("wb") as log:
            self._processes[name] = subprocess.Popen(
                command,
                env=dict(self._environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal goes to the parent alone, which ends them in order.
                start_new_session=True,
                preexec_fn=_prepare_child,
            )

    def running(self, name: str) -> bool:
        """Whether the process still runs."""
        return self._processes[name].poll() is None

    def check(self, name: str, *, may_end: bool = False) -> None:
        """Raise UserError, with the last line of its output, if a process failed or is gone."""
        code = self._processes[name].poll()
        if code is None or (may_end and code == 0):
            return
        raise UserError(f"{name} ended with code {code}: {self.last_line(name)}")

    def last_line(self, name: str) -> str:
        """Last line that a process wrote, or where to look."""
        lines = [line.strip() for line in self.output(name).splitlines()]
        return next((line for line in reversed(lines) if line), f"see '{self._log(name)}'")

    def output(self, name: str) -> str:
        """All that a process wrote so far."""
        return self._log(name).read_text(errors="replace")

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def stop(self, name: str) -> int:
        """End a process with SIGINT, then less kindly; returns its exit code."""
        process = self._processes[name]
        for number, patience in _PATIENCE.items():
            if process.poll() is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
        return process.returncode


def wait_until(condition: Callable[[], bool], timeout: float, interval: float = 0.1) -> bool:
    """Poll a condition; False if it did not come true within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval)
    return True


def _prepare_child() -> None:
    """In the child: SIGTERM when the parent dies, even of SIGKILL; and SIGINT is heard.

    A parent that a shell started in the background ignores SIGINT, and children inherit that.
    Ours are ended by it.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with contextlib.suppress(OSError, AttributeError):  # other systems than Linux
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
