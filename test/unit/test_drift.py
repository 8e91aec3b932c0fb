"""Whether a scene is still the nominal one, judged by its scores."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly_detector_ros.calibration.calibration import NominalScores
from anomaly_detector_ros.calibration.distribution import ScorePool
from anomaly_detector_ros.calibration.drift import (
    LEVELS,
    MIN_FRAMES,
    DriftMonitor,
    NominalFrames,
    cumulative_shares,
    fit_nominal_frames,
)

SIZE = (48, 64)


def place(rng: np.random.Generator) -> tuple[float, float]:
    """How much higher the scores of one place are, and how much they scatter."""
    return float(rng.normal(0, 0.4)), float(rng.uniform(0.8, 1.2))


def frame(rng: np.random.Generator, where: tuple[float, float]) -> np.ndarray:
    """The scores of a frame: as pixels are alike, they follow the place, not the average."""
    level, scatter = where
    return np.exp(rng.normal(level, scatter, SIZE))


def nominal_frames(count: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [frame(rng, place(rng)) for _ in range(count)]


@pytest.fixture(scope="module")
def nominal() -> NominalScores:
    pool = ScorePool()
    for scores in nominal_frames(40, 0):
        pool.add(scores)
    return NominalScores.of(pool)


def watch(nominal: NominalScores, frames: list[np.ndarray], window: int = 30) -> DriftMonitor:
    assert nominal.frames is not None
    monitor = DriftMonitor(nominal.frames, window)
    for scores in frames:
        monitor.add(nominal.distribution(scores).astype(np.float32))
    return monitor


def test_shares_below_the_levels_are_counted():
    values = (np.arange(6400) + 0.5) / 6400
    np.testing.assert_allclose(cumulative_shares(values.reshape(80, 80)), LEVELS, atol=1e-12)
    ends = np.float32([0, 0, 0, 1])
    np.testing.assert_array_equal(cumulative_shares(ends), np.full(LEVELS.shape, 0.75))
    np.testing.assert_allclose(
        cumulative_shares(np.array([0.1, 0.6]), np.array([3, 1])),
        np.where(LEVELS <= 0.1, 0, np.where(LEVELS <= 0.6, 0.75, 1)),
    )


def drifted(monitor: DriftMonitor) -> bool:
    return monitor.statistic is not None and monitor.statistic > monitor.nominal.level


def test_the_shares_of_pooled_images_are_those_of_their_pixels(nominal: NominalScores):
    frames = nominal_frames(3, 7)
    pool = ScorePool()
    for scores in frames:
        pool.add(scores)
    direct = [cumulative_shares(nominal.distribution(scores)) for scores in frames]
    np.testing.assert_allclose(pool.shares(nominal.distribution), direct, atol=2e-3)


def test_nominal_scenes_raise_no_alarm(nominal: NominalScores):
    for seed in range(1, 30):
        monitor = watch(nominal, nominal_frames(30, seed))
        assert monitor.statistic is not None
        assert not drifted(monitor)


def test_a_robot_that_stands_still_raises_no_alarm(nominal: NominalScores):
    rng = np.random.default_rng(3)
    for _ in range(30):
        where = place(rng)
        assert not drifted(watch(nominal, [frame(rng, where) for _ in range(30)]))


@pytest.mark.parametrize("change", [1.1, -1.1])
def test_scores_that_rise_or_fall_everywhere_are_noticed(nominal: NominalScores, change: float):
    frames = [scores * np.exp(change) for scores in nominal_frames(30, 5)]
    assert drifted(watch(nominal, frames))


def test_other_scatter_is_noticed(nominal: NominalScores):
    assert drifted(watch(nominal, [scores**0.5 for scores in nominal_frames(30, 6)]))


def test_a_few_anomalies_are_not_a_drift(nominal: NominalScores):
    frames = nominal_frames(30, 8)
    for scores in frames[::3]:
        scores[:12, :24] = 1000.0  # a tenth of every third frame
    assert not drifted(watch(nominal, frames))


def test_the_window_slides(nominal: NominalScores):
    changed = [scores * 3 for scores in nominal_frames(20, 5)]
    assert drifted(watch(nominal, changed, window=20))
    monitor = watch(nominal, [*changed, *nominal_frames(20, 9)], window=20)
    assert not drifted(monitor)
    assert monitor.statistic == watch(nominal, nominal_frames(20, 9), window=20).statistic


def test_few_frames_are_not_judged(nominal: NominalScores):
    changed = [scores * 5 for scores in nominal_frames(MIN_FRAMES, 5)]
    few = watch(nominal, changed[:-1])
    assert few.statistic is None
    assert not drifted(few)
    assert drifted(watch(nominal, changed))
    shares = np.stack([cumulative_shares(np.full(9, 0.5))] * MIN_FRAMES)
    assert fit_nominal_frames(shares[1:]) is None
    assert fit_nominal_frames(shares) is None  # all the same: nothing to compare with


def test_the_statistic_is_what_its_formula_says():
    rng = np.random.default_rng(0)
    mean, whitening = rng.random(LEVELS.shape), rng.normal(size=(len(LEVELS), len(LEVELS)))
    shares = rng.random((12, len(LEVELS))) * 0.02 + mean
    differences = np.array([whitening @ (row - mean) for row in shares])
    average = differences.mean(0)
    within = np.mean([np.mean((row - average) ** 2) for row in differences])
    assert within != pytest.approx(1, abs=0.01)
    share = max(1 - within, 1 / 10)
    expected = np.mean(average**2) / (share * (1 + share * 2) + 1 / 20)
    found = NominalFrames(mean, whitening, 20, 3.0, 9.0).statistic(shares)
    assert found == pytest.approx(expected)


def test_large_and_small_frames_count_alike(nominal: NominalScores):
    frames = nominal_frames(30, 4)
    large = [np.repeat(np.repeat(scores, 9, 0), 9, 1) for scores in frames]
    small, enlarged = watch(nominal, frames).statistic, watch(nominal, large).statistic
    assert small is not None
    assert enlarged is not None
    assert enlarged == pytest.approx(small, rel=0.3)
