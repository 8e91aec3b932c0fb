"""Whether a camera still sees what it was calibrated on, by the levels of its last frames.

A frame's level, the median of its raw anomaly map, rises with everything that makes a picture new
to the detector: another terrain, darkness, blur, a cast of colour, mud on a third of the lens. A
few anomalies hardly move it, and no calibration and no stream enters it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_FRAMES = 10
"""So many nominal frames are needed to know how they scatter, and so many to judge a window."""

ALARM = 12.0
"""T above it is an alarm; docs/robustness.md says on what it was chosen, and what it does."""

# So many independent frames a window is worth at most: a minute's drive leads to no more places.
_MOST_PLACES = 10


@dataclass(frozen=True)
class NominalLevels:
    """How the levels of nominal frames scatter around their mean.

    For a window of w frames, whose levels are z standard deviations above that mean,

        T = mean(z)^2 / (e (1 + e (b - 1)) + 1 / n)
        e = max(1 - v, 1 / min(w, 10)),  v = mean((z - mean(z))^2)

    However alike neighbours are, mean(z)^2 is 1 - v on average for nominal frames, so 1 / e is how
    many independent frames a window is worth. Frames that are all of one place (e = 1) are compared
    with b, the largest z^2 of a nominal frame; those of many places with the mean of as many. 1 / n
    is the error of the nominal mean. T is 1 on average, and for normal levels nearly chi-squared.

    Attributes:
        mean, deviation: of the levels, in units of the raw scores.
        largest: b, at least 1.
        frames: n.
    """

    mean: float
    deviation: float
    largest: float
    frames: int

    def __post_init__(self) -> None:
        finite = np.isfinite([self.mean, self.deviation, self.largest]).all()
        if not (finite and self.deviation > 0 and self.largest > 0 and self.frames > 0):
            raise ValueError("its levels of nominal frames are none")

    def statistic(self, levels: Sequence[float]) -> float:
        """T of a window's levels."""
        z = (np.asarray(levels, np.float64) - self.mean) / self.deviation
        share = max(1 - float(z.var()), 1 / min(len(z), _MOST_PLACES))
        expected = share * (1 + share * (self.largest - 1)) + 1 / self.frames
        return float(z.mean() ** 2 / expected)


def fit_nominal_levels(levels: Sequence[float]) -> NominalLevels | None:
    """What the levels of nominal frames say; None if they are too few, or all the same."""
    if len(levels) < MIN_FRAMES:
        return None
    mean, deviation = float(np.mean(levels)), float(np.std(levels, ddof=1))
    if not deviation > 0:
        return None
    largest = float(np.square((np.asarray(levels) - mean) / deviation).max())
    return NominalLevels(mean, deviation, largest, len(levels))


class DriftMonitor:
    """Watches whether one camera's scene is still the nominal one.

    Args:
        nominal: what the camera was calibrated on.
        window: so many of the last frames are judged, at least `MIN_FRAMES`.
        taught: what it was taught since; one of both is enough.
    """

    def __init__(
        self, nominal: NominalLevels, window: int, taught: NominalLevels | None = None
    ) -> None:
        self._nominal = [nominal] if taught is None else [nominal, taught]
        self._levels: deque[float] = deque(maxlen=max(window, MIN_FRAMES))

    def add(self, level: float) -> None:
        """Takes a frame's `Detection.level`."""
        self._levels.append(level)

    @property
    def statistic(self) -> float | None:
        """T of the window; None while it holds too few frames to judge."""
        if len(self._levels) < MIN_FRAMES:
            return None
        return min(nominal.statistic(self._levels) for nominal in self._nominal)

    @property
    def drifted(self) -> bool:
        """Whether the window is no longer like nominal frames."""
        statistic = self.statistic
        return statistic is not None and statistic > ALARM
