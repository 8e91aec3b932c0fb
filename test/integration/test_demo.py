"""The demo end to end, and the bag tool against the node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import Reader
from support.pages import Parsed
from support.processes import start_python

from anomaly_detector_ros.bags.processing import process_bag
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.sources.recordings import deserialize

pytest.importorskip("rclpy", reason="no ROS 2 here")
pytestmark = pytest.mark.slow  # whole graphs of processes

ROOT = Path(__file__).resolve().parents[2]
PICTURES = 4
HEATMAP = "/anomaly_detector/camera/heatmap"


def demo(*arguments: object) -> subprocess.Popen[str]:
    command = ("-m", "anomaly_detector_ros", "demo", *arguments)
    return start_python(*command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[str], timeout: float = 120.0) -> tuple[str, str]:
    """Output and errors of a demo, which is killed (and its children with it) if it hangs."""
    try:
        return process.communicate(timeout=timeout)
    finally:
        process.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(5)
    for index in range(PICTURES):
        coarse = rng.integers(0, 256, (9, 16, 3), np.uint8)
        cv2.imwrite(str(folder / f"{index}.png"), cv2.resize(coarse, (160, 90)))
    return folder


@pytest.fixture(scope="module")
def played(
    tmp_path_factory: pytest.TempPathFactory, light_profile: str
) -> tuple[Path, dict[str, object], str]:
    """Output directory, printed result and what a demo of its own pictures said meanwhile."""
    output = tmp_path_factory.mktemp("demo") / "out"
    process = demo(
        *("--profile", light_profile, "--output", output),
        *("--count", PICTURES, "--device", "cpu", "--offline", "--json"),
    )
    out, err = finish(process, 300)
    assert process.returncode == 0, err
    return output, json.loads(out), err


def frames(bag: Path, topic: str) -> dict[int, tuple[str, bytes]]:
    """Frame id and pixels by stamp in ns."""
    found = {}
    with Reader(bag) as reader:
        connections = [c for c in reader.connections if c.topic == topic]
        for connection, _, raw in reader.messages(connections):
            message = deserialize(bytes(raw), connection.msgtype)
            stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
            found[stamp] = (message.header.frame_id, bytes(message.data))
    return found


def test_demo_brings_every_picture_through(played: tuple[Path, dict[str, object], str]) -> None:
    output, result, said = played
    assert result["played"] == result["received"] == result["processed"] == PICTURES
    assert result["dropped"] == 0
    assert result["recorded"] == result["processed"] == result["overlays"]
    assert 0 < result["latency_median_s"] <= result["latency_worst_s"] < 60
    overlays = sorted((output / "overlays").iterdir())
    assert len(overlays) == result["overlays"]
    assert cv2.imread(str(overlays[0])).shape == (272, 512, 3)
    assert json.loads((output / "summary.json").read_text()) == result
    for part in ("loads its models", "join", "travel", "finishes", "writing the bag", "page"):
        assert part in said, said
    assert said.splitlines()[-1] == f"{PICTURES} read, {PICTURES} processed, 0 skipped"


def test_demo_leaves_a_page_and_what_is_in_space(
    played: tuple[Path, dict[str, object], str],
) -> None:
    output, _, _ = played
    page = Parsed(output / "index.html")
    assert len(page.data["frames"]) == PICTURES
    assert all(path.exists() for path in page.referenced())
    with Reader(output / "bag") as reader:
        counts = {c.topic: c.msgcount for c in reader.connections}
    assert counts["/tf_static"] == 1
    assert counts["/anomaly_detector/camera/obstacles"] >= 1
    assert counts["/anomaly_detector/camera/markers"] >= 1


def test_no_picture_is_lost_on_a_machine_busy_with_other_things(
    tmp_path: Path, light_profile: str
) -> None:
    for index in range(PICTURES):
        cv2.imwrite(str(tmp_path / f"{index}.png"), np.full((720, 1280, 3), 40 * index, np.uint8))
    busy = [start_python("-c", "while True: pass") for _ in range(2 * (os.cpu_count() or 1))]
    try:
        process = demo(
            *("--images", tmp_path, "--profile", light_profile, "--output", tmp_path / "out"),
            *("--count", 3 * PICTURES, "--device", "cpu", "--offline", "--json"),
        )
        out, err = finish(process, 600)
    finally:
        for each in busy:
            each.kill()
            each.wait()
    assert process.returncode == 0, err
    found = json.loads(out)
    stages = ("played", "received", "processed", "recorded")
    assert [found[stage] for stage in stages] == [3 * PICTURES] * 4
    assert found["dropped"] == 0


def test_bag_tool_and_node_agree_to_the_bit(
    played: tuple[Path, dict[str, object], str], light_profile: str, tmp_path: Path
) -> None:
    output, _, _ = played
    detector = Detector.from_profile(light_profile, device="cpu", offline=True)
    report = process_bag(output / "bag", tmp_path / "again", detector, topics=["/camera/image_raw"])
    assert report.frames == PICTURES
    for name in ("heatmap", "mask", "segments", "edited", "overlay"):
        topic = f"/anomaly_detector/camera/{name}"
        of_node, of_tool = frames(output / "bag", topic), frames(tmp_path / "again", topic)
        assert of_node
        assert of_tool.keys() >= of_node.keys()
        for stamp, frame in of_node.items():
            assert of_tool[stamp] == frame, name


def test_missing_pictures_and_foreign_output(tmp_path: Path, light_profile: str) -> None:
    (tmp_path / "empty").mkdir()
    process = demo("--images", tmp_path / "empty", "--output", tmp_path / "out")
    assert "no images" in finish(process)[1]
    assert process.returncode == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    (tmp_path / "empty" / "a.png").write_bytes(cv2.imencode(".png", np.zeros((8, 8)))[1].tobytes())
    process = demo("--images", tmp_path / "empty", "--output", tmp_path / "mine")
    assert "'thesis.tex', which is no demo's" in finish(process)[1]
    assert (tmp_path / "mine" / "thesis.tex").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_ends_all_processes(
    folder: Path, light_profile: str, tmp_path: Path, number: int, code: int
) -> None:
    output = tmp_path / "interrupted"
    process = demo("--images", folder, "--profile", light_profile, "--output", output)
    deadline = time.monotonic() + 120
    while not children_of(output) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    started = children_of(output)
    process.send_signal(number)
    finish(process)
    assert started
    assert process.returncode == code
    assert not children_of(output)


def children_of(output: Path) -> list[int]:
    """Processes that log into a demo's output directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if f"ROS_LOG_DIR={output}/logs".encode() in environment:
                found.append(int(entry.name))
    return found
