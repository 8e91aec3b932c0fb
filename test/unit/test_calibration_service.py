"""Thresholds when ~/calibrate makes shares of nominal pixels of raw scores."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from anomaly_detector_ros.calibration.calibration import (
    DEFAULT_CAMERA,
    Calibration,
    NominalScores,
)
from anomaly_detector_ros.calibration.distribution import ScorePool
from anomaly_detector_ros.ros.calibration_service import share


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    pool = ScorePool()
    for seed in range(4):
        pool.add(np.random.default_rng(seed).random((200, 300)) * 0.5, 0.0)
    return Calibration({DEFAULT_CAMERA: NominalScores.of(pool)}, {})


@pytest.mark.parametrize("threshold", [0.3, 0.49, 0.49997, 0.49999, 0.5, 0.51, 0.9])
def test_the_mask_stays_what_it_was(calibration: Calibration, threshold: float):
    scores = np.concatenate([np.linspace(0.0, 1.0, 2001), threshold + np.array([0.0, 1e-4])])
    scores = scores.astype(np.float32)
    heatmap = calibration.heatmap(scores)
    value = share(calibration, DEFAULT_CAMERA, threshold)
    assert 0.0 <= value < 1.0
    mask = heatmap >= np.float32(value)
    before = scores >= np.float32(threshold)
    assert mask[before].all()
    # Beyond the nominal scores float32 tells heatmap values apart up to 1 - 6e-8 only.
    assert not mask[(heatmap < 1.0 - 1e-6) & ~before].any()
