"""Pixel metrics over a data set of any size, which scikit-learn's would have to hold in memory.

Average precision, the area below the precision envelope, AUROC, FPR at 95% TPR, best F1.

Scores are counted by their float32 bit patterns, mapped to integers of the same order. Up to
`MAX_BINS` different scores the metrics are exact; beyond that the last bits are dropped, one by
one, until so many bins suffice. So memory is bounded (about 15 MiB), scores may have any sign
and range, and bins are finest where the scores are: 2^-14 of the value for scores that spread
evenly over 32 powers of two, finer for fewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

MAX_BINS = 1 << 19
_SIGN = np.uint32(1 << 31)


class Curve(NamedTuple):
    """Cumulative counts.

    Attributes:
        thresholds: float32 (T,), falling; a pixel reaches one when its score is not lower.
        anomalous: float64 (T,), how many anomalous pixels reach each; of soft labels their sum.
        nominal: float64 (T,), how many nominal pixels do; of soft labels the rest.
    """

    thresholds: np.ndarray
    anomalous: np.ndarray
    nominal: np.ndarray

    def complete(self) -> bool:
        """Whether there are anomalous and nominal pixels; without either no metric is defined."""
        return bool(len(self.thresholds) and self.anomalous[-1] > 0 and self.nominal[-1] > 0)


@dataclass(frozen=True)
class PixelResult:
    """Metrics of pooled pixels; NaN where a class is missing.

    Attributes:
        auc_pr: average precision, sum of (R_i - R_{i-1}) P_i over thresholds.
        envelope_auc_pr: area below the precision envelope by trapezoids, see `envelope_area`.
        auroc: area under the ROC curve.
        fpr95: false-positive rate at the first threshold with a true-positive rate of 95%.
        best_threshold: the score threshold with the highest pixel F1 ...
        best_f1: ... and that F1.
        anomaly_share: anomalous pixels over all that count; the AUC-PR of a random score.
    """

    auc_pr: float
    envelope_auc_pr: float
    auroc: float
    fpr95: float
    best_threshold: float
    best_f1: float
    anomaly_share: float


class PixelCounts:
    """Counts of scores of anomalous and nominal pixels, added image by image."""

    def __init__(self) -> None:
        self._dropped_bits = 0
        # Keys (N,) with their counts (2, N) of nominal and of anomalous pixels: rising ones of what
        # is merged, then those of single images, merged when there are many: sorting all keys for
        # each image would take most of the time.
        self._parts: list[tuple[np.ndarray, np.ndarray]] = [
            (np.zeros(0, np.uint32), np.zeros((2, 0)))
        ]

    def add(self, scores: np.ndarray, anomaly: np.ndarray, valid: np.ndarray) -> None:
        """Adds one image.

        Args:
            scores: float (H, W), finite as float32, higher is more anomalous.
            anomaly: bool (H, W), the truth; or float in [0, 1], how anomalous each pixel is.
            valid: bool (H, W), False where the truth is void.

        Raises:
            ValueError: a score is not finite, a soft label not in [0, 1], or sizes differ.
        """
        scores = as_scores(scores, anomaly, valid)
        soft = anomaly[valid].astype(np.float64)
        if not ((soft >= 0) & (soft <= 1)).all():
            raise ValueError("soft labels lie in [0, 1]")
        if not valid.any():
            return
        scores = scores[valid]
        keys = _ordered_integers(scores) >> np.uint32(self._dropped_bits)
        keys, bins = np.unique(keys, return_inverse=True)
        counts = np.stack([np.bincount(bins, share) for share in (1 - soft, soft)])
        self._parts.append((keys, counts))
        if sum(len(keys) for keys, _ in self._parts[1:]) > MAX_BINS // 2:
            self._merge()

    def curve(self) -> Curve:
        """Thresholds and what reaches each."""
        keys, counts = self._merge()
        nominal, anomalous = counts[:, ::-1].cumsum(1)
        thresholds = _floats(keys[::-1] << np.uint32(self._dropped_bits))
        return Curve(thresholds, anomalous, nominal)

    def result(self) -> PixelResult:
        """The metrics of everything added so far."""
        curve = self.curve()
        thresholds, true, false = curve
        if not curve.complete():
            share = true[-1] / (true[-1] + false[-1]) if len(true) else np.nan
            nan = np.nan
            return PixelResult(nan, nan, nan, nan, nan, nan, float(share))
        f1_scores = f1(true, false)
        best = int(f1_scores.argmax())
        return PixelResult(
            auc_pr=float(average_precision(true, false)),
            envelope_auc_pr=float(envelope_area(true, false)),
            auroc=float(auroc(true, false)),
            fpr95=float(fpr_at_tpr(true, false)),
            best_threshold=float(thresholds[best]),
            best_f1=float(f1_scores[best]),
            anomaly_share=float(true[-1] / (true[-1] + false[-1])),
        )

    def _merge(self) -> tuple[np.ndarray, np.ndarray]:
        keys, counts = (np.concatenate(arrays, -1) for arrays in zip(*self._parts, strict=True))
        keys, counts = _sum_by_key(keys, counts)
        while len(keys) > MAX_BINS:
            self._dropped_bits += 1
            keys, counts = _sum_by_key(keys >> np.uint32(1), counts)
        self._parts = [(keys, counts)]
        return keys, counts


def as_scores(scores: np.ndarray, anomaly: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Scores as contiguous float32 in which -0.0 is 0.0, checked against the truth.

    Raises:
        ValueError: a score is not finite, or sizes differ.
    """
    if not scores.shape == anomaly.shape == valid.shape:
        raise ValueError(f"scores are {scores.shape}, the truth {anomaly.shape} and {valid.shape}")
    with np.errstate(over="ignore"):
        scores = np.ascontiguousarray(scores, np.float32) + np.float32(0)
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite: there is a NaN or an infinite one")
    return scores


def _sum_by_key(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rising distinct keys (T,) of (N,), and the sums (2, T) of their columns in (2, N)."""
    order = np.argsort(keys)
    keys = keys[order]
    starts = np.flatnonzero(np.diff(keys, prepend=~keys[:1]))
    return keys[starts], np.add.reduceat(counts[:, order], starts, axis=1)


def _ordered_integers(scores: np.ndarray) -> np.ndarray:
    """float32 to uint32, order-preserving: negative patterns reversed, below the others."""
    bits = scores.view(np.uint32)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _floats(keys: np.ndarray) -> np.ndarray:
    """The inverse of `_ordered_integers`."""
    return np.where(keys & _SIGN, keys & ~_SIGN, ~keys).view(np.float32)


# What follows works on curves: two arrays (..., T) of how many anomalous (``true``) and nominal
# (``false``) pixels, or how much of soft labels, reach each of T >= 1 falling thresholds, the last
# of which all reach. Leading axes are separate curves. One that lacks a class gives NaN.


def average_precision(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    """AUC-PR: sum over thresholds of (R_i - R_{i-1}) P_i. Shape (...)."""
    found = true + false
    precision = np.divide(true, found, out=np.zeros(np.shape(found)), where=found > 0)
    # The sum before the division: a perfect scorer then reaches 1 exactly.
    area = np.sum(np.diff(true, prepend=0) * precision, -1)
    with np.errstate(invalid="ignore"):
        return np.where(false[..., -1] > 0, area / true[..., -1], np.nan)


def envelope_area(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    """AUC-PR as the paper's code computes it, by trapezoids from precision 1 at recall 0. (...).

    Each precision is first raised to the highest at any greater recall. On few pixels this is up to
    0.016 above average precision; one threshold for all gives (1 + share of anomalies) / 2.
    """
    found = true + false
    precision = np.divide(true, found, out=np.ones(np.shape(found)), where=found > 0)
    envelope = np.maximum.accumulate(precision[..., ::-1], -1)[..., ::-1]
    before = np.concatenate([np.ones_like(envelope[..., :1]), envelope[..., :-1]], -1)
    area = np.sum(np.diff(true, prepend=0) * (before + envelope), -1) / 2
    with np.errstate(invalid="ignore"):
        return np.where(false[..., -1] > 0, area / true[..., -1], np.nan)


def auroc(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    """Area under the ROC curve by trapezoids: ties count half. Shape (...)."""
    before = np.concatenate([np.zeros_like(true[..., :1]), true[..., :-1]], -1)
    area = np.sum(np.diff(false, prepend=0) * (true + before), -1) / 2
    with np.errstate(invalid="ignore"):
        return np.asarray(area / (true[..., -1] * false[..., -1]))


def fpr_at_tpr(true: np.ndarray, false: np.ndarray, tpr: float = 0.95) -> np.ndarray:
    """False-positive rate at the first threshold with a true-positive rate of ``tpr``. (...)."""
    with np.errstate(invalid="ignore"):
        reached = true / true[..., -1:] >= tpr
        fpr = false / false[..., -1:]
    first = reached.argmax(-1)[..., None]
    return np.where(true[..., -1] > 0, np.take_along_axis(fpr, first, -1)[..., 0], np.nan)


def f1(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    """Pixel F1 at each threshold, 2 TP / (2 TP + FP + FN). Shape (..., T)."""
    with np.errstate(invalid="ignore"):
        return np.asarray(2 * true / (true + false + true[..., -1:]))
