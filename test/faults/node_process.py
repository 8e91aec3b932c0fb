"""The detector's node as a real process, its output in a file."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fault import UnexpectedError
from support.waiting import wait_until

MODULE = "anomaly_detector_ros.ros.main"


class NodeProcess:
    """A running node.

    Args:
        environment: of the process.
        log: file for what it writes.
        parameters: the node's.
        prefix: a command that runs the node's, as ``unshare`` does.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        log: Path,
        parameters: Mapping[str, Any],
        prefix: Sequence[str] = (),
    ) -> None:
        words = [
            f"{k}:={v if isinstance(v, str) else json.dumps(v)}" for k, v in parameters.items()
        ]
        arguments = [part for word in words for part in ("-p", word)]
        self.log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [*prefix, sys.executable, "-m", MODULE, "--ros-args", *arguments],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def output(self) -> str:
        """All it wrote so far."""
        return self.log.read_text(errors="replace")

    def wait_for(self, words: str, timeout: float = 180.0) -> None:
        """Returns once it wrote the words; UnexpectedError if it ends or takes too long."""

        def written() -> bool:
            if words in self.output:
                return True
            if not self.running:
                last = self.output.strip().splitlines()[-1:] or ["nothing"]
                raise UnexpectedError(
                    f"the node ended with code {self._process.returncode}: {last[0][-300:]}"
                )
            return False

        wait_until(written, f"'{words}' of the node", timeout)

    def end(self, number: signal.Signals, timeout: float = 30.0) -> tuple[int, float]:
        """Sends a signal that should end it; exit code and seconds it took."""
        begun = time.monotonic()
        self._process.send_signal(number)
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.close()
            raise UnexpectedError(f"still runs {timeout:g} s after {number.name}") from None
        return code, time.monotonic() - begun

    def wait(self, timeout: float) -> int:
        """Its exit code, once it ended by itself."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise UnexpectedError(f"still runs after {timeout:g} s") from None

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def close(self) -> None:
        """Ends it in any case."""
        if self.running:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
