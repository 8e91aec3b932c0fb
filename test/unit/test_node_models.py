"""The node's models when memory runs out: less demanding ones at once, the profile's own later."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from anomaly_detector_ros import building
from anomaly_detector_ros.detection import Detection
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.ros import detectors as detectors_module
from anomaly_detector_ros.ros.detectors import Detectors, Wanted
from anomaly_detector_ros.runtime import memory_ladder
from anomaly_detector_ros.runtime.memory_ladder import RESTORE_AFTER


class SmallMemory:
    """A denoiser of which only a few images fit into the device's memory at a time."""

    fits = 100
    calls: list[tuple[str, int]] = []  # noqa: RUF012
    """Device and batch of each call."""

    def __init__(self, denoiser: building.Denoiser) -> None:
        self._denoiser, self.schedule = denoiser, denoiser.schedule

    def __call__(self, x: Tensor, t: int | Tensor) -> Tensor:
        self.calls.append((x.device.type, len(x)))
        if len(x) > self.fits and x.device.type != "cpu":
            raise torch.cuda.OutOfMemoryError(f"CUDA out of memory: {len(x)} images")
        if len(x) > self.fits:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return self._denoiser(x, t)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> type[SmallMemory]:
    load = building.load_denoiser
    monkeypatch.setattr(building, "load_denoiser", lambda *a, **k: SmallMemory(load(*a, **k)))
    monkeypatch.setattr(SmallMemory, "fits", 100)
    monkeypatch.setattr(SmallMemory, "calls", [])
    return SmallMemory


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]

    class Ladder(memory_ladder.Ladder):
        def __init__(self, depth: int) -> None:
            super().__init__(depth, lambda: now[0])

    monkeypatch.setattr(detectors_module, "Ladder", Ladder)
    return now


@pytest.fixture
def two_edits(light_profile: str, tmp_path: Path) -> str:
    (profile,) = yaml.safe_load(Path(light_profile).read_text()).values()
    profile["sampler"]["num_edits"] = 2
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump({"two": profile}))
    return str(file)


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (30, 40, 3), np.uint8)


def test_the_image_is_tried_again_with_less_and_later_with_all(
    two_edits: str, memory: type[SmallMemory], clock: list[float]
):
    beats: list[bool] = []
    models = Detectors(Wanted(two_edits, "cpu"), lambda: beats.append(models.loading))
    models.load()
    assert beats == [True]
    (expected,) = models.detect([""], [picture()])
    assert models.problem == ""
    memory.fits = 1
    (found,) = models.detect([""], [picture()])
    np.testing.assert_allclose(found.heatmap, expected.heatmap, atol=1e-5)
    assert models.problem == "edits one by one: DefaultCPUAllocator: can't allocate memory"
    assert len(beats) == 3  # after the failure, and after loading
    memory.calls.clear()
    clock[0] = RESTORE_AFTER / 2
    assert isinstance(models.detect([""], [picture()])[0], Detection)
    assert {count for _, count in memory.calls} == {1}
    clock[0] = RESTORE_AFTER  # tried again, and still too much
    assert isinstance(models.detect([""], [picture()])[0], Detection)
    assert models.level.one_by_one
    memory.fits = 100
    clock[0] = 3 * RESTORE_AFTER
    memory.calls.clear()
    (found,) = models.detect([""], [picture()])
    assert np.array_equal(found.heatmap, expected.heatmap)
    assert {count for _, count in memory.calls} == {2}
    assert models.problem == ""


def test_at_the_lowest_level_the_image_fails(
    two_edits: str, memory: type[SmallMemory], clock: list[float]
):
    models = Detectors(Wanted(two_edits, "cpu"))
    models.load()
    memory.fits = 0
    (problem,) = models.detect([""], [picture()])
    assert "can't allocate" in str(problem)
    assert problem.__traceback__ is None
    assert models.level == models._levels[-1]
    memory.fits = 1
    assert isinstance(models.detect([""], [picture()])[0], Detection)


def test_memory_may_run_out_while_loading(
    two_edits: str, memory: type[SmallMemory], clock: list[float]
):
    memory.fits = 1
    models = Detectors(Wanted(two_edits, "cpu"))
    models.load()
    assert models.level.one_by_one
    assert models.detector("") is models.any
    memory.fits = 0
    models = models.fresh()
    with pytest.raises(RuntimeError, match="can't allocate"):
        models.load()
    assert models.any is None
    assert not models.loading


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_last_resort_is_the_cpu(two_edits: str, memory: type[SmallMemory], clock: list[float]):
    models = Detectors(Wanted(two_edits, "cuda"))
    models.load()

    def call(self: SmallMemory, x: Tensor, t: int | Tensor) -> Tensor:
        if x.device.type != "cpu":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return self._denoiser(x, t)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SmallMemory, "__call__", call)
        assert isinstance(models.detect([""], [picture()])[0], Detection)
    assert models.level.on_cpu
    assert str(models.any.device) == "cpu"
    for number in range(1, 4):
        clock[0] = number * RESTORE_AFTER
        assert isinstance(models.detect([""], [picture()])[0], Detection)
    assert models.problem == ""
    assert models.any.device.type == "cuda"


def test_one_image_that_fails_spoils_no_batch(light_profile: str, monkeypatch: pytest.MonkeyPatch):
    models = Detectors(Wanted(light_profile, "cpu"))
    models.load()
    good = [picture(1), picture(2)]
    expected = [models.any.detect(image) for image in good]
    bad = np.zeros((0, 5, 3), np.uint8)
    found = models.detect([""] * 3, [good[0], bad, good[1]])
    assert isinstance(found[1], UserError)
    for detection, single in zip((found[0], found[2]), expected, strict=True):
        np.testing.assert_allclose(detection.heatmap, single.heatmap, atol=1e-4)
    batch = models.detect([""] * 2, good)
    for detection, single in zip(batch, expected, strict=True):
        np.testing.assert_allclose(detection.heatmap, single.heatmap, atol=1e-4)


def test_cameras_share_networks_and_have_their_own_calibrations(two_edits: str, tmp_path: Path):
    import cv2

    from anomaly_detector_ros.fitting import fit_calibration
    from anomaly_detector_ros.profiles import load_profile

    files = [tmp_path / f"{seed}.png" for seed in range(4)]
    for seed, file in enumerate(files):
        cv2.imwrite(str(file), picture(seed))
    profile = load_profile(two_edits)
    fitted = tmp_path / "rear.safetensors"
    fit_calibration(profile, building.Parts(torch.device("cpu"), offline=True), files).save(fitted)
    wanted = Wanted(two_edits, "cpu", calibrations={"front": "", "rear": str(fitted), "left": ""})
    models = Detectors(wanted)
    models.load()
    front, rear = models.detector("front"), models.detector("rear")
    assert front is models.detector("left")
    assert front.denoiser is rear.denoiser
    assert (front.calibrated, rear.calibrated) == (False, True)
    (found,) = models.detect(["rear"], [picture()])
    overrides = {"calibration": {"file": str(fitted)}}
    expected = Detector.from_profile(two_edits, device="cpu", overrides=overrides)
    assert np.array_equal(found.heatmap, expected.detect(picture()).heatmap)
    # Kept with fewer prompts, too, although it was fitted for the profile's own.
    models._ladder.level = len(models._levels) - 1
    models._detectors.clear()
    models.load()
    assert models.detector("rear").calibrated


def test_missing_models_are_the_user_s_to_mend(tmp_path: Path):
    with pytest.raises(UserError, match="no_such"):
        Detectors(Wanted("no_such", "cpu")).load()
    with pytest.raises(UserError, match="cuda:99"):
        Detectors(Wanted("light", "cuda:99"))
