"""Nominal scores of several cameras in one file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anomaly_detector_ros.calibration.calibration import (
    DEFAULT_CAMERA,
    Calibration,
    NominalScores,
    load_calibration,
    pack,
    unpack,
)
from anomaly_detector_ros.calibration.distribution import ScorePool
from anomaly_detector_ros.errors import UserError


def scores(scale: float, images: int = 12) -> NominalScores:
    pool = ScorePool()
    rng = np.random.default_rng(0)
    for _ in range(images):
        frame = rng.gamma(2.0, rng.uniform(0.8, 1.2) * scale, (30, 40))
        pool.add(frame, float(np.median(frame)))
    return NominalScores.of(pool)


@pytest.fixture(scope="module")
def cameras() -> dict[str, NominalScores]:
    return {DEFAULT_CAMERA: scores(1.0), "front": scores(2.0), "robot/rear": scores(3.0, images=4)}


def test_a_file_holds_the_scores_of_each_camera(cameras: dict[str, NominalScores], tmp_path: Path):
    file = tmp_path / "c.safetensors"
    Calibration(cameras=cameras, fingerprint={}).save(file)
    loaded = load_calibration(file)
    assert list(loaded.cameras) == list(cameras)
    raw = np.linspace(0, 20, 1200).reshape(30, 40)
    for name, nominal in cameras.items():
        np.testing.assert_array_equal(
            loaded.heatmap(raw, name), nominal.distribution(raw).astype(np.float32)
        )
        found = loaded.nominal(name)
        assert (found.images, found.pixels) == (nominal.images, nominal.pixels)
        assert found.levels == nominal.levels
    assert loaded.nominal("front").levels is not None
    assert loaded.nominal("robot/rear").levels is None  # four frames are too few to know
    unknown = loaded.heatmap(raw, "left")
    np.testing.assert_array_equal(unknown, loaded.heatmap(raw))
    assert not np.array_equal(unknown, loaded.heatmap(raw, "front"))


def test_malformed_scores_are_refused(cameras: dict[str, NominalScores], tmp_path: Path):
    entries, tensors = pack(cameras)
    assert list(unpack(entries, tensors)) == list(cameras)
    levels = entries[0]["levels"]
    for malformed in (
        (entries[1:], tensors),  # no default
        ([*entries, entries[1]], tensors),
        (entries, {**tensors, "camera1.scores": tensors["camera1.scores"].flip(0)}),
        ([{**entries[0], "levels": {**levels, "deviation": 0.0}}, *entries[1:]], tensors),
        ([{**entries[0], "levels": {"mean": 0.1}}, *entries[1:]], tensors),
        ([{**entries[0], "tail_scale": 0.0}, *entries[1:]], tensors),
    ):
        with pytest.raises((ValueError, KeyError, TypeError)):
            unpack(*malformed)
    file = tmp_path / "c.safetensors"
    named = {"front": cameras["front"]}
    replace(Calibration(cameras=cameras, fingerprint={}), cameras=named).save(file)
    with pytest.raises(UserError, match="is no calibration"):
        load_calibration(file)
