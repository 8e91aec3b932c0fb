"""The paper's weighting (Ancha et al. 2025): what the training images often hold counts little.

A pixel of an in-distribution class weighs 1 - f(class), f the share of training images that hold
the class; an out-of-distribution pixel weighs 1. AUC-PR is then average precision on sums of
weights in place of counts. The paper divides it by the value that a perfect scorer reaches. With
average precision and one weight per pixel that value is 1: such a scorer finds all anomalous weight
before any nominal one, so every term (R_i - R_{i-1}) P_i has P_i = 1, and the terms sum to 1
whatever the weights. Nothing is left to divide by.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from anomaly_detector_ros.evaluation.metrics.components import ComponentCounts

RELATIVE_THRESHOLDS = np.arange(2, 10, dtype=np.float32) / np.float32(10)


def pixel_weights(
    labels: np.ndarray, anomaly: np.ndarray, frequencies: Mapping[int, float]
) -> np.ndarray:
    """What each pixel weighs, float64 (H, W) in [0, 1].

    Args:
        labels: integer (H, W), class ids >= 0.
        anomaly: bool (H, W), what is out of distribution.
        frequencies: f in [0, 1] by class id; 0 for classes that are not in it.

    Raises:
        ValueError: a frequency is not in [0, 1].
    """
    table = np.ones(1 + max(int(labels.max(initial=0)), *frequencies, 0))
    for label, frequency in frequencies.items():
        if not 0 <= frequency <= 1:
            raise ValueError(f"class {label} has frequency {frequency}: shares lie in [0, 1]")
        table[label] = 1 - frequency
    return np.where(anomaly, 1.0, table[labels])


class WeightedComponents:
    """F1* from weighted pixels at `RELATIVE_THRESHOLDS` of the highest score; the best counts.

    Scores divided by their maximum need one above zero: otherwise nothing is counted. For scores
    whose zero has no meaning, such as log-likelihoods, these thresholds have none either.

    Args:
        highest: the highest score of the data set.
    """

    def __init__(self, highest: float) -> None:
        self.highest = highest
        self.counts = [ComponentCounts() for _ in RELATIVE_THRESHOLDS]

    def add(
        self, scores: np.ndarray, anomaly: np.ndarray, valid: np.ndarray, weights: np.ndarray
    ) -> None:
        """Adds one image: float32 scores, bool truth, weights as of `pixel_weights`, (H, W)."""
        if self.highest <= 0:
            return
        relative = scores / np.float32(self.highest)
        for threshold, counts in zip(RELATIVE_THRESHOLDS, self.counts, strict=True):
            counts.add(relative >= threshold, anomaly, valid, weights)

    def best(self) -> ComponentCounts:
        """The counts at the threshold with the highest F1*; the F1* is NaN if none has one."""
        return max(self.counts, key=lambda counts: np.nan_to_num(counts.f1_star(), nan=-1))
