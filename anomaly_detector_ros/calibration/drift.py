"""Whether the scores of the last frames are still distributed like those of nominal frames."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

_BINS = 64
LEVELS = np.arange(1, 61) / _BINS
"""Where distributions are compared: up to 0.94, so that a few real anomalies don't count."""

MIN_FRAMES = 10
"""So many nominal frames are needed to know how they scatter, and so many to judge a window."""

# Whitening by the covariance of a few frames at 60 levels overrates directions in which these few
# happened not to differ; this much of it is replaced by that of independent levels.
_SHRINKAGE = 0.8
_RUN_LENGTHS = (1, 2, 5, 10, 20, 50)
_MOST_RUNS = 50
# So many independent frames a window is worth at most.
_MOST_PLACES = 10
# How much more than any run of nominal frames a window must show.
_MARGIN = 1.5
# A frame's distribution is known well from so many of its pixels: scores are smooth.
_PIXELS = 40_000


def cumulative_shares(values: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """The share of a frame's pixels below each of the `LEVELS`, float64 (60,).

    Args:
        values: calibrated scores in [0, 1], an array of any shape.
        counts: how many pixels each stands for; one by default.
    """
    bins = (values.ravel() * _BINS).astype(np.intp).clip(0, _BINS - 1)
    weights = None if counts is None else counts.ravel()
    histogram = np.bincount(bins, weights, minlength=_BINS)
    shares: np.ndarray = np.cumsum(histogram)[: len(LEVELS)] / histogram.sum()
    return shares


@dataclass(frozen=True)
class NominalFrames:
    """How the distributions of nominal frames scatter around their mean.

    Calibrated scores of nominal pixels are uniform (the probability integral transform), those of
    one frame hardly ever: its pixels are alike. So the difference d of a frame's cumulative
    distribution from the nominal mean is measured against how nominal frames scatter, as by
    Hotelling's T^2 with a shrunk covariance. For a window of w frames with mean difference m

        T = |W m|^2 / (e (1 + e (b - 1)) + 1 / n)
        e = max(1 - v, 1 / min(w, 10)),  v = mean_i |W (d_i - m)|^2

    with |.|^2 the mean square and W such that a nominal frame has |W d|^2 = 1 on average, b at
    most. However alike neighbours are, |W m|^2 is 1 - v on average for nominal frames, so 1 / e is
    how many independent frames the window is worth. Where a robot stands still, e is 1, and no
    view that is less unusual than some nominal frame raises an alarm; where frames differ as
    nominal ones do, they are worth 10 at most, as a minute's drive does not lead to more places.
    1 / n is the error of the nominal mean.

    Attributes:
        mean: float64 (L,), mean over nominal frames of `cumulative_shares`.
        whitening: W, float64 (L, L).
        frames: n.
        largest: b.
        level: T above it is an alarm: 1.5 times the largest that runs of the nominal frames reach
            against the rest of them.
    """

    mean: np.ndarray
    whitening: np.ndarray
    frames: int
    largest: float
    level: float

    def statistic(self, shares: np.ndarray) -> float:
        """T of a window's `cumulative_shares`, (w, L)."""
        whitened = (shares - self.mean) @ self.whitening.T
        return _statistic(whitened, self.frames, self.largest)


def fit_nominal_frames(shares: np.ndarray) -> NominalFrames | None:
    """What the `cumulative_shares` of nominal frames, (n, L), say; None if they are too few.

    Args:
        shares: neighbours in time stand side by side.
    """
    count = len(shares)
    if count < MIN_FRAMES:
        return None
    runs = [_held_out_run(shares, start, length) for start, length in _runs(count)]
    # Of frames that it was not made of, a whitening gives more than of its own.
    single = [float(np.square(run).mean()) for run in runs if len(run) == 1]
    scale = np.mean(single)
    if not scale > 0:  # frames that are all the same
        return None
    largest = float(max(single) / scale)
    whitening = _whitening(shares) / np.sqrt(scale)
    level = _MARGIN * max(
        _statistic(run / np.sqrt(scale), count - len(run), largest) for run in runs
    )
    return NominalFrames(shares.mean(0), whitening, count, largest, level)


def _runs(count: int) -> list[tuple[int, int]]:
    """Start and length of runs of up to a third of so many frames, evenly spread."""
    runs: list[tuple[int, int]] = []
    for length in _RUN_LENGTHS:
        if length <= count // 3:
            last = count - length
            starts = np.linspace(0, last, min(last + 1, _MOST_RUNS)).round().astype(int)
            runs += [(int(start), length) for start in starts]
    return runs


def _held_out_run(shares: np.ndarray, start: int, length: int) -> np.ndarray:
    """Whitened differences of a run of frames from all the others, whose whitening it is."""
    others = np.delete(shares, np.s_[start : start + length], axis=0)
    differences = shares[start : start + length] - others.mean(0)
    whitened: np.ndarray = differences @ _whitening(others).T
    return whitened


def _whitening(shares: np.ndarray) -> np.ndarray:
    """The inverse Cholesky factor of the shrunk covariance (Ledoit & Wolf 2004)."""
    covariance = np.cov(shares, rowvar=False)
    levels = len(covariance)
    # The floor keeps frames that are all the same from dividing by nothing.
    target = max(float(np.trace(covariance)) / levels, 1e-12) * np.eye(levels)
    return np.linalg.inv(np.linalg.cholesky((1 - _SHRINKAGE) * covariance + _SHRINKAGE * target))


def _statistic(whitened: np.ndarray, nominal: int, largest: float) -> float:
    """T of whitened differences (w, L); see `NominalFrames`."""
    mean = whitened.mean(0)
    within = np.square(whitened - mean).mean()
    share = max(1 - within, 1 / min(len(whitened), _MOST_PLACES))
    expected = share * (1 + share * (largest - 1)) + 1 / nominal
    return float(np.square(mean).mean() / expected)


class DriftMonitor:
    """Watches whether one camera's scene is still the nominal one.

    Args:
        nominal: what the camera was calibrated on.
        window: so many of the last frames are judged, at least `MIN_FRAMES`.
    """

    def __init__(self, nominal: NominalFrames, window: int) -> None:
        self.nominal = nominal
        self._shares: deque[np.ndarray] = deque(maxlen=max(window, MIN_FRAMES))

    def add(self, heatmap: np.ndarray) -> None:
        """Takes a frame's calibrated heatmap, float (H, W) in [0, 1]."""
        step = max(1, int(np.sqrt(heatmap.size / _PIXELS)))
        self._shares.append(cumulative_shares(heatmap[::step, ::step]))

    @property
    def statistic(self) -> float | None:
        """T of the window; None while it holds too few frames to judge."""
        if len(self._shares) < MIN_FRAMES:
            return None
        return self.nominal.statistic(np.stack(list(self._shares)))
