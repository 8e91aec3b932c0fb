"""The distribution of anomaly scores on nominal images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from anomaly_detector_ros.errors import UserError

# So many different scores are kept as they are; of more, those at `_LEVELS`.
_MOST_KNOTS = 4096
# Shares of lower scores: every thousandth, and a hundred a decade of the highest 1%.
_LEVELS = np.union1d(np.linspace(0, 1, 1001)[:-1], 1 - np.geomspace(1e-2, 1e-6, 401))
# The share of the highest scores that the exponential beyond them is fitted to.
_TAIL_SHARE = 0.01


@dataclass(frozen=True)
class ScoreDistribution:
    """The share of nominal pixels with a lower score, as a function of the score.

    Linear between known scores. Beyond the highest one, s_max, the share that is not lower falls
    exponentially, so that higher scores still rank higher:

        1 - F(s) = (1 - F(s_max)) exp(-(s - s_max) / tail_scale)

    Attributes:
        scores: float64 (Q,), rising.
        below: float64 (Q,), share of nominal pixels with a lower score, rising from 0.
        tail_scale: mean excess of the highest 1% over the lowest of them, in units of the scores.
    """

    scores: np.ndarray
    below: np.ndarray
    tail_scale: float

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Scores of any shape -> float64 in [0, 1], never falling with the score.

        0.99: higher than 99% of nominal pixels. In float32 values differ up to about 1 - 1e-7.
        """
        scores = np.asarray(scores, np.float64)
        shares = np.asarray(np.interp(scores, self.scores, self.below))
        beyond = scores > self.scores[-1]
        excess = scores[beyond] - self.scores[-1]
        shares[beyond] = 1 - (1 - self.below[-1]) * np.exp(-excess / self.tail_scale)
        return shares

    def lowered(self, other: ScoreDistribution) -> ScoreDistribution:
        """The lower share of both at every score: high only what is high among either's scores."""
        scores = np.union1d(self.scores, other.scores)
        below = np.minimum(self(scores), other(scores))
        # Both rise; where both are 0, the last one counts.
        kept = np.append(np.diff(below) > 0, True)
        below, scores = below[kept], scores[kept]
        return ScoreDistribution(scores, below, max(self.tail_scale, other.tail_scale))

    @classmethod
    def checked(cls, scores: np.ndarray, below: np.ndarray, tail_scale: float) -> ScoreDistribution:
        """One out of a file.

        Raises:
            ValueError: it is none.
        """
        rising = all(np.diff(values).min() > 0 for values in (scores, below))
        if (
            scores.shape != below.shape
            or not rising
            or not tail_scale > 0
            or not 0 <= below[-1] < 1
        ):
            raise ValueError("its distribution is not one")
        return cls(scores, below, tail_scale)


class ScorePool:
    """Collects the scores of images, each as some thousand quantiles, and their levels.

    Args:
        pools: whose images it holds from the start, in this order.

    Attributes:
        pixels: of all images.
        levels: of each image, see `add`.
    """

    def __init__(self, pools: Iterable[ScorePool] = ()) -> None:
        self.pixels = 0
        self.levels: list[float] = []
        self._images: list[tuple[np.ndarray, np.ndarray]] = []
        for pool in pools:
            self.pixels += pool.pixels
            self.levels += pool.levels
            self._images += pool._images

    def __len__(self) -> int:
        return len(self._images)

    def add(self, scores: np.ndarray, level: float) -> None:
        """Adds one image.

        Args:
            scores: of its pixels, an array of any shape.
            level: of its raw anomaly map, `Detection.level`.

        Raises:
            ValueError: scores that are not finite.
        """
        if not np.isfinite(scores).all():
            raise ValueError("the anomaly map holds values that are not finite")
        values = np.asarray(scores, np.float64).ravel()
        self.pixels += values.size
        self.levels.append(level)
        self._images.append(_pooled(values, np.ones(values.size)))

    def distribution(self) -> ScoreDistribution:
        """The distribution of all pixels of all images.

        Raises:
            UserError: no two scores differ.
        """
        if not self._images:
            raise UserError("calibration: no nominal image: give some")
        arrays = zip(*self._images, strict=True)
        scores, counts = _pooled(*map(np.concatenate, arrays))
        if len(scores) < 2:
            raise UserError("calibration: all nominal scores are alike: check denoiser and sampler")
        below = _below(counts)
        first = min(int(np.searchsorted(below, 1 - _TAIL_SHARE)), len(scores) - 2)
        excess = scores[first:] - scores[first]
        tail_scale = float(np.average(excess, weights=counts[first:]))
        return ScoreDistribution(scores, below, tail_scale)


def _pooled(scores: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different scores, rising, and how many pixels each stands for."""
    scores, inverse = np.unique(scores, return_inverse=True)
    counts = np.bincount(inverse, weights=counts)
    if len(scores) <= _MOST_KNOTS:
        return scores, counts
    kept = np.unique(np.searchsorted(_below(counts), _LEVELS).clip(max=len(scores) - 1))
    return scores[kept], np.add.reduceat(counts, kept)


def _below(counts: np.ndarray) -> np.ndarray:
    """The share of pixels before each of the counts."""
    shares: np.ndarray = (np.cumsum(counts) - counts) / counts.sum()
    return shares
