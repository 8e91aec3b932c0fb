"""The executable: how it ends, and what it does with impossible parameters."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from ros_graph import child_environment, wait_until

COMMAND = [sys.executable, "-m", "anomaly_detector_ros.ros.main", "--ros-args"]


class Process:
    """The node as a process, its output read line by line."""

    def __init__(self, *parameters: str) -> None:
        arguments = [word for each in parameters for word in ("-p", each)]
        self._process = subprocess.Popen(
            [*COMMAND, "-r", "__ns:=/process", *arguments],
            env=child_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._overdue = threading.Timer(180.0, self._process.kill)
        self._overdue.start()

    def wait_for(self, words: str) -> None:
        seen = []
        for line in self._process.stdout:
            seen.append(line)
            if words in line:
                return
        pytest.fail(f"the node ended without '{words}':\n{''.join(seen)}")

    def wait_for_handler(self, number: signal.Signals) -> None:
        """Until the process handles a signal, which rclpy does from its start on."""

        def handled() -> bool:
            status = Path(f"/proc/{self._process.pid}/status").read_text()
            caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
            return bool(int(caught.split()[1], 16) >> (number - 1) & 1)

        wait_until(handled, "a signal handler", timeout=120.0)

    def end(self, number: signal.Signals) -> tuple[int, float, str]:
        """Exit code, seconds it took and remaining output."""
        begun = time.monotonic()
        self._process.send_signal(number)
        output, _ = self._process.communicate(timeout=20)
        return self._process.returncode, time.monotonic() - begun, output

    def close(self) -> None:
        self._overdue.cancel()
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for each in started:
        each.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["active", "loading the models"])
def test_signals_end_the_node_cleanly(
    processes: list[Process], light_profile: str, number: signal.Signals, moment: str
):
    process = Process(f"profile:={light_profile}", "device:=cpu")
    processes.append(process)
    process.wait_for(moment)
    code, seconds, output = process.end(number)
    assert code == 0, output
    assert seconds < 3.0
    assert "Traceback" not in output


def test_signal_ends_an_unconfigured_node(processes: list[Process]):
    process = Process("autostart:=false")
    processes.append(process)
    process.wait_for_handler(signal.SIGTERM)
    time.sleep(3.0)
    code, seconds, output = process.end(signal.SIGTERM)
    assert (code, "Traceback" in output) == (0, False), output
    assert seconds < 3.0


@pytest.mark.parametrize(
    ("parameter", "words"),
    [("threshold:=2.5", "threshold"), ("device:=tpu", "cuda:N"), ("cameras:=['/x']", "relative")],
)
def test_impossible_parameters_end_it_with_one_line(parameter: str, words: str):
    ended = subprocess.run(
        [*COMMAND, "-p", parameter],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert words in ended.stderr
