"""Calibrating on the frames of a running detector."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anomaly_detector_ros.building import fingerprint
from anomaly_detector_ros.calibration.calibration import DEFAULT_CAMERA, load_calibration
from anomaly_detector_ros.calibration.live import (
    LiveCalibration,
    check_writable,
    default_file,
    save_calibration,
)
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.weights.registry import Registry


@pytest.fixture(scope="module")
def detector(light_profile: str) -> Detector:
    return Detector.from_profile(light_profile, device="cpu", offline=True)


def pictures(count: int, brightness: int = 110) -> list[np.ndarray]:
    rng = np.random.default_rng(brightness)
    return [
        rng.normal(brightness, 40, (24, 36, 3)).clip(0, 255).astype(np.uint8) for _ in range(count)
    ]


def collect(live: LiveCalibration, detector: Detector, cameras: dict[str, int]) -> bool:
    complete = False
    for camera, brightness in cameras.items():
        for image in pictures(live.count, brightness):
            assert not complete
            found = detector.detect(image, camera)
            complete = live.add(camera, found.scores, found.level)
    return complete


def test_a_running_detector_gets_the_scores_of_its_cameras(light_profile: str, tmp_path: Path):
    detector = Detector.from_profile(light_profile, device="cpu", offline=True)
    live = LiveCalibration(["front", "rear"], 12)
    assert collect(live, detector, {"front": 60, "rear": 180})
    calibration = live.calibration(
        detector.calibration, fingerprint(detector.profile, Registry.default())
    )
    file = tmp_path / "new.safetensors"
    save_calibration(calibration, file)
    detector.recalibrate(calibration, file)
    # A start with the file gives what is in force now.
    overrides = {"calibration": {"file": str(file)}}
    restarted = Detector.from_profile(light_profile, device="cpu", overrides=overrides)
    for camera, brightness in (("front", 60), ("rear", 180)):
        images = pictures(12, brightness)
        heatmaps = np.stack([detector.detect(image, camera).heatmap for image in images])
        # On the very frames it was fitted on, the values are shares of pixels.
        for share in (0.25, 0.5, 0.95):
            assert np.mean(heatmaps < share) == pytest.approx(share, abs=0.005)
        np.testing.assert_array_equal(restarted.detect(images[0], camera).heatmap, heatmaps[0])
    together = load_calibration(file).nominal(DEFAULT_CAMERA)
    assert together.images == 24
    assert detector.profile.calibration["file"] == str(file)


def test_what_a_file_holds_besides_stays(detector: Detector):
    live = LiveCalibration(["front"], 3)
    collect(live, detector, {"front": 60})
    of = fingerprint(detector.profile, Registry.default())
    first = replace(live.calibration(None, of), seed=9)
    again = LiveCalibration(["rear"], 3)
    collect(again, detector, {"rear": 180})
    second = again.calibration(first, {})
    assert set(second.cameras) == {DEFAULT_CAMERA, "front", "rear"}
    assert second.cameras["front"] is first.cameras["front"]
    assert second.cameras[DEFAULT_CAMERA] is first.cameras[DEFAULT_CAMERA]
    assert second.seed == 9
    assert second.fingerprint == of


def test_a_camera_that_stopped_is_given_up():
    live = LiveCalibration(["front", "rear"], 4)
    scores = np.random.default_rng(0).random((6, 8))
    assert not live.add("rear", scores, 0.0)
    taken = 0
    while not live.add("front", scores, 0.0):
        taken += 1
    assert taken == 11
    assert (live.cameras, live.missing) == (["front"], ["rear"])
    assert live.progress == "front 4, rear 1 of 4 frames"


def test_scores_that_tell_nothing_are_refused(detector: Detector):
    live = LiveCalibration(["front"], 2)
    with pytest.raises(ValueError, match="not finite"):
        live.add("front", np.full((4, 5), np.nan), 0.0)
    live.add("front", np.ones((4, 5)), 1.0)
    assert live.add("front", np.ones((4, 5)), 1.0)
    with pytest.raises(UserError, match="alike"):
        live.calibration(None, fingerprint(detector.profile, Registry.default()))


def test_a_file_that_cannot_be_written_is_one_line(detector: Detector, tmp_path: Path):
    live = LiveCalibration(["front"], 2)
    collect(live, detector, {"front": 60})
    calibration = live.calibration(None, fingerprint(detector.profile, Registry.default()))
    nowhere = tmp_path / "absent" / "c.safetensors"
    with pytest.raises(UserError, match="calibration_output") as refused:
        save_calibration(calibration, nowhere)
    assert "\n" not in str(refused.value)
    check_writable(nowhere)
    assert list(nowhere.parent.iterdir()) == []
    save_calibration(calibration, nowhere)
    file = tmp_path / "file"
    file.write_text("")
    for impossible in (file / "c.safetensors", tmp_path):
        with pytest.raises(UserError, match="cannot write the calibration"):
            check_writable(impossible)


def test_nodes_of_one_machine_write_different_files(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ROS_HOME", "/ros")
    assert default_file("/robot1/anomaly_detector") == Path(
        "/ros/robot1_anomaly_detector_calibration.safetensors"
    )
    monkeypatch.delenv("ROS_HOME")
    assert default_file("/anomaly_detector").parent == Path("~/.ros").expanduser()
