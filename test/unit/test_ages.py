"""The age of an image, with clocks that agree and clocks that do not."""

from __future__ import annotations

import pytest

from anomaly_detector_ros.ros.worker import OWN_CLOCK_BOUND, input_age, moments

SECOND = 1_000_000_000
NOW = 1_700_000_000 * SECOND


def test_age_by_stamp_counts_transport_and_waiting():
    age = input_age(NOW - 3 * SECOND // 2, NOW - SECOND, NOW, waited=1.0)
    assert age.by_stamp
    assert age.seconds == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("stamp", "why"),
    [
        (0, "zero"),
        (NOW + 5 * SECOND, "future"),
        (NOW - 3600 * SECOND, "a bag's"),
        (5 * SECOND, "time since boot"),
    ],
)
def test_foreign_stamps_are_aged_by_their_arrival(stamp: int, why: str):
    age = input_age(stamp, NOW - SECOND // 5, NOW, waited=0.2)
    assert not age.by_stamp, why
    assert age.seconds == pytest.approx(0.2)


def test_an_old_stamp_of_the_own_clock_stays_one_below_the_bound():
    stamp = NOW - int((OWN_CLOCK_BOUND - 1) * SECOND)
    assert input_age(stamp, NOW, NOW, waited=0.0).seconds == pytest.approx(OWN_CLOCK_BOUND - 1)


def test_a_large_limit_widens_the_bound():
    stamp = NOW - 25 * SECOND
    assert not input_age(stamp, NOW, NOW, waited=0.0, max_input_age=1.0).by_stamp
    assert input_age(stamp, NOW, NOW, waited=0.0, max_input_age=20.0).seconds == pytest.approx(25)


def test_a_clock_set_back_gives_no_negative_age():
    age = input_age(NOW, NOW, NOW - 100 * SECOND, waited=0.1)
    assert age == (pytest.approx(0.1), False)


@pytest.mark.parametrize(
    ("stamp", "by_stamp", "expected"),
    [
        (NOW - SECOND, True, (NOW - SECOND,)),
        (NOW - 10_800 * SECOND, False, (NOW - 10_800 * SECOND, NOW)),  # a recording, or a clock
        (NOW + 10_800 * SECOND, False, (NOW,)),
        (0, False, (NOW,)),
    ],
)
def test_tf_is_asked_for_what_it_may_know(stamp: int, by_stamp: bool, expected: tuple[int, ...]):
    assert moments(stamp, NOW, by_stamp) == expected
