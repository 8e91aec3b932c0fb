"""How old an image is, also where its stamp comes from another clock."""

from __future__ import annotations

from typing import NamedTuple

OWN_CLOCK_BOUND = 10.0
"""A stamp further than this many seconds before its arrival is taken for another clock's."""


class InputAge(NamedTuple):
    """Age of an image and what it was measured by."""

    seconds: float
    by_stamp: bool
    """True: the header's stamp; False: the time since arrival, the stamp being of no use."""


def input_age(
    stamp: int, arrived: int, now: int, waited: float, max_input_age: float = 0.0
) -> InputAge:
    """Age of an image in seconds, never negative.

    A stamp tells the age only if it was taken with the node's clock. A replayed bag without
    simulated time, a driver that stamps zero and a camera with a clock of its own do not; dropping
    all of their images as too old would help nobody, so these are aged by their waiting time alone.

    Args:
        stamp: the header's stamp in nanoseconds.
        arrived: the node's clock at arrival, nanoseconds.
        now: the node's clock, nanoseconds.
        waited: seconds since arrival by a monotonic clock.
        max_input_age: the limit in force; a stamp counts as the node's clock up to twice this limit
            before its arrival, and up to `OWN_CLOCK_BOUND` in any case.
    """
    bound = max(OWN_CLOCK_BOUND, 2.0 * max_input_age)
    transport = (arrived - stamp) * 1e-9
    age = (now - stamp) * 1e-9
    if stamp > 0 and 0.0 <= transport <= bound and age >= 0.0:
        return InputAge(age, True)
    return InputAge(max(0.0, waited), False)
