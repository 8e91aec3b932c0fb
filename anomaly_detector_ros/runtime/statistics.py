"""Small statistics: the bootstrap over images (Efron & Tibshirani 1993, percentile interval)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A 95% interval; NaN where it cannot be had."""

    low: float
    high: float


def draw(images: int, resamples: int, seed: int) -> np.ndarray:
    """How often each resample of as many images holds each. int64 (resamples, images)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(images, np.full(images, 1 / images), size=resamples)


def interval(samples: np.ndarray) -> Interval:
    """The 2.5% and 97.5% quantiles of a metric's resamples.

    Resamples without a value (NaN: all images with anomalies are left out) do not count.
    """
    samples = samples[~np.isnan(samples)]
    if not len(samples):
        return Interval(np.nan, np.nan)
    return Interval(*np.quantile(samples, (0.025, 0.975)).tolist())
