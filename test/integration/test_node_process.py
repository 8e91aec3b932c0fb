"""The executable: how it ends, and what it does with impossible parameters."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml

pytest.importorskip("rclpy", reason="rclpy is not installed")

from support.processes import start_python
from support.ros_graph import Graph, child_environment
from support.waiting import wait_until

COMMAND = [sys.executable, "-m", "anomaly_detector_ros.ros.main", "--ros-args"]


class Process:
    """The node as a process, its output read line by line."""

    def __init__(self, *parameters: str, command: Sequence[str] = COMMAND[1:]) -> None:
        arguments = [word for each in parameters for word in ("-p", each)]
        self._process = start_python(
            *(*command, "-r", "__ns:=/process", *arguments),
            env=child_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._overdue = threading.Timer(180.0, self._process.kill)
        self._overdue.start()

    def wait_for(self, words: str) -> str:
        """What it printed up to those words."""
        seen = []
        for line in self._process.stdout:
            seen.append(line)
            if words in line:
                return "".join(seen)
        pytest.fail(f"the node ended without '{words}':\n{''.join(seen)}")

    def wait_for_handler(self, number: signal.Signals) -> None:
        """Until the process handles a signal, which rclpy does from its start on."""

        def handled() -> bool:
            status = Path(f"/proc/{self._process.pid}/status").read_text()
            caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
            return bool(int(caught.split()[1], 16) >> (number - 1) & 1)

        wait_until(handled, "a signal handler", timeout=120.0)

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

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


def test_what_means_nothing_to_it_is_told_and_integers_are_numbers(
    processes: list[Process], light_profile: str, tmp_path: Path
):
    theirs, own = tmp_path / "theirs.yaml", tmp_path / "own.yaml"
    theirs.write_text("/detector:\n  ros__parameters:\n    threshold: 0.5\n")
    own.write_text(
        "/process/anomaly_detector:\n  ros__parameters:\n    threshold: 1\n"
        "    grey_range: [0, 4095]\n    camera:\n      heigth: 1.2\n"
    )
    process = Process(
        f"profile:={light_profile}", "device:=cpu", "treshold:=0.5", "camera.height:=1",
        "qos_overrides./process/camera/image_raw.subscription.depht:=3",
        command=[*COMMAND[1:], "--params-file", str(theirs), "--params-file", str(own)],
    )  # fmt: skip
    processes.append(process)
    output = process.wait_for("active, listening")
    assert f"parameter file '{theirs}' is for '/detector'" in output
    assert str(own) not in output
    assert "unknown parameter 'treshold': did you mean 'threshold'?" in output
    assert "unknown parameter 'camera.heigth': did you mean 'camera.height'?" in output
    topic = "qos_overrides./process/camera/image_raw.subscription"
    assert f"unknown parameter '{topic}.depht': did you mean '{topic}.depth'?" in output


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("pause", [0.0, 0.5, 2.0])
def test_signals_end_it_while_it_starts(
    processes: list[Process], number: signal.Signals, pause: float
):
    """While modules are imported, rclpy is initialised and the node is made."""
    process = Process("autostart:=false")
    processes.append(process)
    # Python handles SIGINT by itself before the program begins; SIGTERM only the program does.
    process.wait_for_handler(signal.SIGTERM)
    time.sleep(pause)
    code, seconds, output = process.end(number)
    assert (code, "Traceback" in output) == (0, False), output
    assert seconds < 3.0


def test_a_signal_ends_it_in_the_middle_of_an_image(
    processes: list[Process], light_profile: str, tmp_path: Path
):
    """With a thousand steps for an image, which take minutes."""
    (profile,) = yaml.safe_load(Path(light_profile).read_text()).values()
    profile["sampler"] = {"name": "few_step", "noise_level": 1.0, "steps": 1000}
    profile["denoiser"]["size"] = [128, 192]
    slow = tmp_path / "slow.yaml"
    slow.write_text(yaml.safe_dump({"slow": profile}))
    process = Process(f"profile:={slow}", "device:=cpu")  # the warm-up image, for one
    processes.append(process)
    process.wait_for("loading the models")
    wait_until(lambda: process.cpu_seconds() > 10, "the first image to be in work", timeout=120.0)
    code, seconds, output = process.end(signal.SIGTERM)
    assert (code, "Traceback" in output, "models loaded" in output) == (0, False, False), output
    assert seconds < 3.0


HANGING = """
import sys, time
from anomaly_detector_ros.ros.main import main
from anomaly_detector_ros.ros.node import AnomalyDetectorNode

AnomalyDetectorNode.close = lambda self, timeout: time.sleep(60)
main(sys.argv)
"""


def test_a_shutdown_that_hangs_is_ended_and_told(processes: list[Process]):
    process = Process("autostart:=false", command=["-c", HANGING, "--ros-args"])
    processes.append(process)
    process.wait_for_handler(signal.SIGTERM)
    time.sleep(3.0)
    code, seconds, output = process.end(signal.SIGTERM)
    assert code == 1, output
    assert "not put in order within" in output
    assert seconds < 5.0


def no_room_for_files() -> None:
    """Every write to a file fails from now on, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def test_a_full_disk_does_not_keep_it_from_working(light_profile: str, tmp_path: Path):
    graph = Graph("watcher", autostart=False)
    with open("/dev/full", "w") as full:
        node = subprocess.Popen(
            [*COMMAND, "-r", "__ns:=/full", "-p", f"profile:={light_profile}", "-p", "device:=cpu"],
            env={
                **child_environment(),
                "ROS_LOG_DIR": str(tmp_path),
                "FASTDDS_BUILTIN_TRANSPORTS": "UDPv4",  # shared memory would be files, too
            },
            stdout=full,
            stderr=full,
            preexec_fn=no_room_for_files,
        )
    try:
        graph.base = "/full/anomaly_detector"
        state = f"{graph.base}/get_state"
        services = graph.client.get_service_names_and_types
        wait_until(lambda: state in dict(services()), "the node", timeout=120.0)
        wait_until(lambda: graph.state() == "active", "activation", timeout=120.0)
        assert all(file.stat().st_size == 0 for file in tmp_path.rglob("*") if file.is_file())
        node.send_signal(signal.SIGTERM)
        assert node.wait(20) == 0
    finally:
        node.kill()
        node.wait()
        graph.close()
