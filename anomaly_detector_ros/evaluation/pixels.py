"""Pixel metrics over a data set of any size: average precision, AUROC, FPR at 95% TPR, best F1.

Scores are counted in bins of the leading bits of their float32 pattern, which orders non-negative
floats: memory stays constant and neighbouring bins differ by 2^-14 of the value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_SHIFT = 9
_BINS = (np.float32(2).view(np.uint32) >> _SHIFT).item() + 1


@dataclass(frozen=True)
class PixelResult:
    """Metrics of pooled pixels; NaN where a class is missing.

    Attributes:
        auc_pr: average precision, sum of (R_i - R_{i-1}) P_i over thresholds.
        auroc: area under the ROC curve.
        fpr95: false-positive rate at the first threshold with a true-positive rate of 95%.
        best_threshold: the score threshold with the highest pixel F1 ...
        best_f1: ... and that F1.
        anomaly_share: anomalous pixels over all that count; the AUC-PR of a random score.
    """

    auc_pr: float
    auroc: float
    fpr95: float
    best_threshold: float
    best_f1: float
    anomaly_share: float


class PixelCounts:
    """Counts of scores of anomalous and nominal pixels, added image by image."""

    def __init__(self) -> None:
        self.anomalous = np.zeros(_BINS, np.int64)
        self.nominal = np.zeros(_BINS, np.int64)

    def add(self, scores: np.ndarray, anomaly: np.ndarray, valid: np.ndarray) -> None:
        """Adds one image.

        Args:
            scores: float (H, W) in [0, 2], higher is more anomalous.
            anomaly: bool (H, W), the truth.
            valid: bool (H, W), False where the truth is void.
        """
        scores = np.ascontiguousarray(scores, np.float32) + np.float32(0)  # -0.0 becomes 0.0
        if not ((scores >= 0) & (scores <= 2)).all():
            raise ValueError("scores must lie in [0, 2]")
        bins = scores.view(np.uint32) >> _SHIFT
        self.anomalous += np.bincount(bins[anomaly & valid], minlength=_BINS)
        self.nominal += np.bincount(bins[~anomaly & valid], minlength=_BINS)

    def curve(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Thresholds (falling), and how many anomalous and nominal pixels reach each."""
        used = np.flatnonzero(self.anomalous + self.nominal)[::-1]
        thresholds = (used.astype(np.uint32) << _SHIFT).view(np.float32)
        return thresholds, np.cumsum(self.anomalous[used]), np.cumsum(self.nominal[used])

    def result(self) -> PixelResult:
        """The metrics of everything added so far."""
        thresholds, true, false = self.curve()
        positives = true[-1] if len(true) else 0
        negatives = false[-1] if len(false) else 0
        if not positives or not negatives:
            share = 1.0 if positives else 0.0
            return PixelResult(np.nan, np.nan, np.nan, np.nan, np.nan, share)
        recall, fall_out = true / positives, false / negatives
        precision = true / (true + false)
        f1 = 2 * true / (true + false + positives)
        best = int(f1.argmax())
        return PixelResult(
            auc_pr=float(np.sum(np.diff(recall, prepend=0) * precision)),
            auroc=float(
                np.sum(np.diff(fall_out, prepend=0) * (recall + np.append(0, recall[:-1])) / 2)
            ),
            fpr95=float(fall_out[np.searchsorted(recall, 0.95)]),
            best_threshold=float(thresholds[best]),
            best_f1=float(f1[best]),
            anomaly_share=float(positives / (positives + negatives)),
        )
