"""The temporal filter: an exponential average by stamps, and when it starts anew."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly_detector_ros.imaging.temporal import GAP, TemporalFilter

SECOND = 1_000_000_000


def heat(value: float, shape: tuple[int, int] = (3, 4)) -> np.ndarray:
    return np.full(shape, value, np.float32)


def test_a_step_is_followed_with_the_time_constant():
    made = TemporalFilter()
    made.update(heat(0.0), 100 * SECOND, 2.0)
    after = made.update(heat(1.0), 102 * SECOND, 2.0)
    assert after.dtype == np.float32
    np.testing.assert_allclose(after, 1 - np.exp(-1), rtol=1e-6)


@pytest.mark.parametrize("frames", [1, 7, 50])
def test_the_frame_rate_makes_no_difference_to_a_step(frames: int):
    made = TemporalFilter()
    made.update(heat(0.0), 0, 1.5)
    for number in range(1, frames + 1):
        after = made.update(heat(1.0), round(2 * SECOND * number / frames), 1.5)
    np.testing.assert_allclose(after, 1 - np.exp(-2 / 1.5), rtol=1e-5)


def test_flicker_fades_and_what_stays_remains():
    made = TemporalFilter()
    made.update(heat(0.5), 0, 1.0)
    for number in range(1, 100):
        pixels = heat(0.5)
        pixels[0, 0] = number % 2
        pixels[1, 1] = 0.9
        after = made.update(pixels, number * SECOND // 10, 1.0)
    assert abs(after[0, 0] - 0.5) < 0.06
    assert after[1, 1] == pytest.approx(0.9, abs=1e-3)
    assert after[2, 2] == 0.5
    assert 0 <= after.min() <= after.max() <= 1


@pytest.mark.parametrize(
    ("stamp", "shape", "why"),
    [
        (10 * SECOND, (3, 4), "the same stamp again"),
        (9 * SECOND, (3, 4), "back in time"),
        (10 * SECOND + int((GAP + 0.1) * SECOND), (3, 4), "a gap"),
        (11 * SECOND, (4, 3), "another size"),
    ],
)
def test_it_starts_anew(stamp: int, shape: tuple[int, int], why: str):
    made = TemporalFilter()
    made.update(heat(0.0), 10 * SECOND, 1.0)
    after = made.update(heat(1.0, shape), stamp, 1.0)
    assert np.array_equal(after, heat(1.0, shape)), why
    # And goes on from there.
    after = made.update(heat(0.0, shape), stamp + SECOND, 1.0)
    np.testing.assert_allclose(after, np.exp(-1), rtol=1e-6)


def test_reset_and_switching_off_forget():
    made = TemporalFilter()
    made.update(heat(0.0), 10 * SECOND, 1.0)
    made.reset()
    assert made.update(heat(1.0), 11 * SECOND, 1.0)[0, 0] == 1
    given = heat(0.3)
    assert made.update(given, 12 * SECOND, 0.0) is given
    assert made.update(heat(0.8), 13 * SECOND, 1.0)[0, 0] == np.float32(0.8)


def test_inputs_are_not_written_to():
    made = TemporalFilter()
    first, second = heat(0.0), heat(1.0)
    made.update(first, 0, 1.0)
    made.update(second, SECOND, 1.0)
    made.update(heat(0.2), 2 * SECOND, 1.0)
    assert np.array_equal(first, heat(0.0))
    assert np.array_equal(second, heat(1.0))
