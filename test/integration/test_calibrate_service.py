"""~/calibrate and the drift monitor in a live graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from std_srvs.srv import Trigger
from support.node_client import image
from support.ros_graph import Graph
from support.waiting import wait_until

from anomaly_detector_ros.calibration.calibration import load_calibration
from anomaly_detector_ros.ros import calibration_service

FRAMES = 10
CAMERAS = ["front", "rear"]


@pytest.fixture
def graph(light_profile: str, tmp_path: Path, request: pytest.FixtureRequest):
    graph = Graph(
        request.node.originalname,
        profile=light_profile,
        device="cpu",
        cameras=CAMERAS,
        calibration_frames=FRAMES,
        calibration_output=str(tmp_path / "out" / "live.safetensors"),
        max_input_age=0.0,
    )
    wait_until(lambda: graph.state() == "active", "activation", timeout=120.0)
    try:
        yield graph
    finally:
        graph.close()


def calibrate(graph: Graph) -> Trigger.Response:
    return graph.call(Trigger, "calibrate", Trigger.Request())


def send(graph: Graph, heatmaps: dict[str, list], count: int, brightness: int = 110) -> None:
    """Sends each camera so many pictures, each after the result of the one before."""
    rng = np.random.default_rng(brightness)
    for _ in range(count):
        for camera in CAMERAS:
            before = len(heatmaps[camera])
            pixels = rng.normal(brightness, 40, (24, 36, 3)).clip(0, 255).astype(np.uint8)
            graph.send(image(pixels), camera=camera)
            wait_until(lambda c=camera, n=before: len(heatmaps[c]) > n, f"a heatmap of {camera}")


def listen(graph: Graph) -> dict[str, list]:
    return {camera: graph.listen_output("heatmap", camera=camera) for camera in CAMERAS}


def test_the_next_frames_calibrate_the_running_node(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(calibration_service, "WATCH_INTERVAL", 0.0)
    file = tmp_path / "out" / "live.safetensors"
    heatmaps = listen(graph)
    answer = calibrate(graph)
    assert answer.success
    assert str(file) in answer.message
    assert f"{FRAMES} frames of front, rear" in answer.message
    send(graph, heatmaps, 2)
    twice = calibrate(graph)
    assert not twice.success
    assert twice.message.startswith("already calibrating: front 2, rear")
    graph.diagnostics("front", lambda found: "front 2" in found.get("calibrating", ""))
    assert not file.exists()
    session = graph.node.session
    before = session.threshold("front")
    send(graph, heatmaps, FRAMES - 2)
    wait_until(lambda: session.threshold("front") != before, "the calibration in force")
    found = graph.diagnostics("node", lambda found: found["message"] == "active")
    assert found["calibration"] == f"calibrated ({file})"
    assert set(load_calibration(file).cameras) == {"", *CAMERAS}
    assert [each.name for each in file.parent.iterdir()] == [file.name]
    send(graph, heatmaps, 10)
    after = np.frombuffer(heatmaps["front"][-1].data, np.float32)
    assert np.median(after) == pytest.approx(0.5, abs=0.2)
    graph.diagnostics(
        "front", lambda found: "drift (alarm level)" in found and found["level"] == "0"
    )
    send(graph, heatmaps, 20, brightness=20)
    drifted = graph.diagnostics(
        "front", lambda found: calibration_service.DRIFTED in found["message"]
    )
    assert drifted["level"] == "1"


def test_deactivation_cancels_and_what_cannot_be_written_is_refused(graph: Graph, tmp_path: Path):
    heatmaps = listen(graph)
    (tmp_path / "file").write_text("")
    assert graph.set_parameters(
        calibration_output=str(tmp_path / "file" / "c.safetensors")
    ).successful
    refused = calibrate(graph)
    assert not refused.success
    assert "cannot write the calibration" in refused.message
    folder = tmp_path / "out"
    assert graph.set_parameters(calibration_output=str(folder / "c.safetensors")).successful
    assert calibrate(graph).success
    send(graph, heatmaps, 2)
    assert graph.transition("deactivate")
    assert not calibrate(graph).success
    assert graph.transition("activate")
    graph.diagnostics("front", lambda found: "cancelled" in str(found))
    # The folder vanishes while frames are collected: the node stays as it was.
    assert calibrate(graph).success
    folder.rmdir()
    send(graph, heatmaps, FRAMES)
    graph.diagnostics("front", lambda found: "cannot write" in found.get("last calibration", ""))
    found = graph.diagnostics("node", lambda found: "calibration" in found)
    assert "uncalibrated" in found["message"]
    assert calibrate(graph).success
    send(graph, heatmaps, FRAMES)
    graph.diagnostics("node", lambda found: found["message"] == "active")
    assert (folder / "c.safetensors").is_file()
