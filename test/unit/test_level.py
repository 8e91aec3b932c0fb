"""The level of a frame and of a stream's last frames."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly_detector_ros.calibration.level import (
    FRAMES,
    GAP,
    StreamLevels,
    frame_level,
    level_among,
)

SECOND = 10**9


def test_the_level_of_a_frame_is_its_median_at_any_size() -> None:
    for size in ((1, 1), (7, 9), (272, 512), (1200, 1920)):
        ramp = np.linspace(0, 1, size[1], dtype=np.float32) + np.zeros(size, np.float32)
        assert frame_level(ramp) == pytest.approx(np.median(ramp), abs=0.02)


def test_what_fills_a_frame_does_not_hide_itself_and_a_new_light_is_taken_in() -> None:
    levels = StreamLevels()
    for second in range(1, FRAMES):
        levels.add(0.2, second * SECOND)
    now = FRAMES
    assert level_among(0.9, levels.before(now * SECOND)) == pytest.approx(0.2)
    for _ in range(FRAMES // 2):
        levels.add(0.9, now * SECOND)
        now += 1
    assert len(levels.before(now * SECOND)) == FRAMES - 1
    assert level_among(0.9, levels.before(now * SECOND)) == pytest.approx(0.9)


def test_a_picture_by_itself_has_its_own_level() -> None:
    assert level_among(0.4, ()) == pytest.approx(0.4)


@pytest.mark.parametrize("stamp", [0, 3 * SECOND, 2 * SECOND, int((3 + GAP + 1) * SECOND)])
def test_a_stream_starts_anew_after_a_gap_and_with_a_clock_that_goes_back(stamp: int) -> None:
    levels = StreamLevels()
    for second in (1, 2, 3):
        levels.add(0.2, second * SECOND)
    assert levels.before(4 * SECOND) == (0.2, 0.2, 0.2)
    assert levels.before(stamp) == ()
    levels.add(0.5, stamp)
    assert levels.before(stamp + SECOND) == (0.5,)
    levels.reset()
    assert levels.before(stamp + SECOND) == ()
