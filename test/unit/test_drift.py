"""Whether a scene is still the nominal one, judged by the levels of frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from anomaly_detector_ros.calibration.calibration import NominalScores
from anomaly_detector_ros.calibration.distribution import ScorePool
from anomaly_detector_ros.calibration.drift import (
    MIN_FRAMES,
    DriftMonitor,
    NominalLevels,
    fit_nominal_levels,
)
from anomaly_detector_ros.calibration.level import frame_level

SIZE = (48, 64)


def place(rng: np.random.Generator) -> float:
    """How much higher the scores of one place are than those of another."""
    return float(rng.normal(0, 0.07))


def frame(rng: np.random.Generator, where: float) -> np.ndarray:
    """The scores of a frame: as pixels are alike, they follow the place, not the average."""
    return np.exp(rng.normal(where, 1.0, SIZE))


def nominal_frames(count: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [frame(rng, place(rng)) for _ in range(count)]


@pytest.fixture(scope="module")
def nominal() -> NominalLevels:
    pool = ScorePool()
    for scores in nominal_frames(40, 0):
        pool.add(scores, frame_level(scores))
    levels = NominalScores.of(pool).levels
    assert levels is not None
    return levels


def watch(nominal: NominalLevels, frames: list[np.ndarray], window: int = 60) -> DriftMonitor:
    monitor = DriftMonitor(nominal, window)
    for scores in frames:
        monitor.add(frame_level(scores))
    return monitor


def test_nominal_scenes_raise_no_alarm(nominal: NominalLevels):
    for seed in range(1, 30):
        monitor = watch(nominal, nominal_frames(30, seed))
        assert monitor.statistic is not None
        assert not monitor.drifted


def test_a_robot_that_stands_still_raises_no_alarm(nominal: NominalLevels):
    rng = np.random.default_rng(3)
    for _ in range(30):
        where = place(rng)
        assert not watch(nominal, [frame(rng, where) for _ in range(30)]).drifted


@pytest.mark.parametrize("change", [0.4, -1.1])
def test_scores_that_rise_or_fall_everywhere_are_noticed(nominal: NominalLevels, change: float):
    frames = [scores * np.exp(change) for scores in nominal_frames(60, 5)]
    assert watch(nominal, frames).drifted


def test_a_new_surface_on_a_third_of_the_image_is_noticed(nominal: NominalLevels):
    frames = nominal_frames(60, 6)
    for scores in frames:
        scores[32:] *= 4
    assert watch(nominal, frames).drifted


def test_a_few_anomalies_are_not_a_drift(nominal: NominalLevels):
    frames = nominal_frames(30, 8)
    for scores in frames[::3]:
        scores[:12, :24] = 1000.0  # a tenth of every third frame
    assert not watch(nominal, frames).drifted


def test_the_window_slides(nominal: NominalLevels):
    changed = [scores * 3 for scores in nominal_frames(20, 5)]
    assert watch(nominal, changed, window=20).drifted
    monitor = watch(nominal, [*changed, *nominal_frames(20, 9)], window=20)
    assert not monitor.drifted
    assert monitor.statistic == watch(nominal, nominal_frames(20, 9), window=20).statistic


def test_few_frames_are_not_judged(nominal: NominalLevels):
    changed = [scores * 5 for scores in nominal_frames(MIN_FRAMES, 5)]
    few = watch(nominal, changed[:-1])
    assert few.statistic is None
    assert not few.drifted
    assert watch(nominal, changed).drifted
    levels = np.random.default_rng(0).random(MIN_FRAMES).tolist()
    assert fit_nominal_levels(levels) is not None
    assert fit_nominal_levels(levels[1:]) is None
    assert fit_nominal_levels(levels[:1]) is None
    assert fit_nominal_levels([0.5] * MIN_FRAMES) is None  # nothing to compare with


def test_the_statistic_is_what_its_formula_says():
    nominal = NominalLevels(mean=0.2, deviation=0.02, largest=5.0, frames=20)

    def levels(z: Sequence[float]) -> list[float]:
        return (0.2 + 0.02 * np.asarray(z)).tolist()

    z = np.array([1.4, 0.8, 1.9, 0.6, 1.1, 1.7, 0.9, 1.2, 2.0, 1.3, 0.7, 1.6])
    share = 1 - np.mean((z - z.mean()) ** 2)
    expected = z.mean() ** 2 / (share * (1 + share * 4) + 1 / 20)
    assert nominal.statistic(levels(z)) == pytest.approx(expected)
    # Frames that scatter as nominal ones do are worth ten at most.
    wide = np.tile([-0.5, 2.5], 30)
    expected = 1 / (0.1 * (1 + 0.1 * 4) + 1 / 20)
    assert nominal.statistic(levels(wide)) == pytest.approx(expected)
    # One place is compared with single frames.
    assert nominal.statistic(levels([2] * 60)) == pytest.approx(4 / (5 + 1 / 20))


def test_levels_that_are_none_are_refused(nominal: NominalLevels):
    for broken in ({"deviation": 0.0}, {"mean": float("nan")}, {"largest": -1.0}, {"frames": 0}):
        with pytest.raises(ValueError, match="levels"):
            replace(nominal, **broken)


def test_terrain_that_was_taught_is_as_good_as_that_of_the_calibration():
    nominal, taught = NominalLevels(0.2, 0.01, 4.0, 60), NominalLevels(0.4, 0.01, 4.0, 20)
    for level, alarms in ((0.2, False), (0.4, False), (0.3, True)):
        monitor = DriftMonitor(nominal, MIN_FRAMES, taught)
        for _ in range(MIN_FRAMES):
            monitor.add(level)
        assert monitor.drifted == alarms
