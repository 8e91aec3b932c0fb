"""The node with a calibration of its own, in a live graph."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("rclpy", reason="rclpy is not installed")

from support.node_client import image, picture
from support.ros_graph import Graph
from support.waiting import wait_until

from anomaly_detector_ros.building import Parts
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.fitting import fit_calibration
from anomaly_detector_ros.profiles import load_profile


@pytest.fixture
def two_edits(light_profile: str, tmp_path: Path) -> str:
    """A profile file with two edits and a whitened distance."""
    (profile,) = yaml.safe_load(Path(light_profile).read_text()).values()
    profile["sampler"]["num_edits"] = 2
    profile["distance"] = {"name": "whitened"}
    file = tmp_path / "two_edits.yaml"
    file.write_text(yaml.safe_dump({"two_edits": profile}))
    return str(file)


@pytest.fixture
def calibration(two_edits: str, tmp_path: Path) -> Path:
    files = [tmp_path / f"{seed}.png" for seed in range(4)]
    for seed, file in enumerate(files):
        pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8)
        cv2.imwrite(str(file), pixels)
    parts = Parts(torch.device("cpu"), offline=True)
    file = tmp_path / "calibration.safetensors"
    fit_calibration(load_profile(two_edits), parts, files).save(file)
    return file


def test_the_parameter_calibrates_the_heatmap(two_edits: str, calibration: Path):
    graph = Graph("calibrated", profile=two_edits, calibration=str(calibration), device="cpu")
    try:
        wait_until(lambda: graph.state() == "active", "activation", timeout=120.0)
        found = graph.diagnostics("node", lambda found: "calibration" in found)
        assert found["calibration"] == f"calibrated ({calibration})"
        assert found["distance"] == "whitened"
        assert found["message"] == "active"
        outputs = {name: graph.listen_output(name) for name in ("heatmap", "uncertainty")}
        pixels = picture(48, 64)
        graph.send(image(pixels))
        wait_until(lambda: all(outputs.values()), "the outputs")
        overrides = {"calibration": {"file": str(calibration)}}
        detector = Detector.from_profile(two_edits, device="cpu", overrides=overrides)
        expected = detector.detect(pixels)
        assert expected.uncertainty.max() > 0
        for name, messages in outputs.items():
            assert messages[0].encoding == "32FC1"
            array = np.frombuffer(messages[0].data, np.float32).reshape(48, 64)
            np.testing.assert_allclose(array, getattr(expected, name), atol=1e-5)
        refused = graph.set_parameters(calibration="")
        assert not refused.successful
        assert "unconfigured" in refused.reason
    finally:
        graph.close()


def test_a_profile_that_needs_a_calibration_says_so(two_edits: str, calibration: Path):
    graph = Graph("uncalibrated", profile=two_edits, device="cpu")
    try:
        found = graph.diagnostics("node", lambda found: found["level"] == "2")
        assert "anomaly-detector calibrate" in found["message"]
        assert not graph.set_parameters(calibration="/no/such/file").successful
        assert graph.set_parameters(calibration=str(calibration)).successful
        assert graph.transition("configure")
    finally:
        graph.close()
