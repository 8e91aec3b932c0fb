"""Precision-recall and ROC curves: areas and points on them, from cumulative counts.

A curve is two arrays (..., T): how many anomalous (``true``) and nominal (``false``) pixels, or
how much weight of them, reach each of T >= 1 falling thresholds. The last threshold is reached by
all. Leading axes are separate curves. A curve that lacks one of the two classes gives NaN.
"""

from __future__ import annotations

import numpy as np


def average_precision(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    """AUC-PR: sum over thresholds of (R_i - R_{i-1}) P_i. Shape (...)."""
    found = true + false
    precision = np.divide(true, found, out=np.zeros(np.shape(found)), where=found > 0)
    # The sum before the division: a perfect scorer then reaches 1 exactly.
    area = np.sum(np.diff(true, prepend=0) * precision, -1)
    with np.errstate(invalid="ignore"):
        return np.where(false[..., -1] > 0, area / true[..., -1], np.nan)


def auroc(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    """Area under the ROC curve by trapezoids: ties count half. Shape (...)."""
    before = np.concatenate([np.zeros_like(true[..., :1]), true[..., :-1]], -1)
    area = np.sum(np.diff(false, prepend=0) * (true + before), -1) / 2
    with np.errstate(invalid="ignore"):
        return area / (true[..., -1] * false[..., -1])


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
        return 2 * true / (true + false + true[..., -1:])
