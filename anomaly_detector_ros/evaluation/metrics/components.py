"""Component F1*: are whole objects found? (Chan et al. 2021, SegmentMeIfYouCan)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np

MIN_PREDICTED = 500
MIN_TRUTH = 100
TAUS = np.arange(25, 76, 5) / 100
RELATIVE_THRESHOLDS = np.arange(2, 10, dtype=np.float32) / np.float32(10)


@dataclass
class ComponentCounts:
    """Component scores of all images added.

    Attributes:
        siou: adjusted IoU of each true component,
            sIoU(k) = |k and K| / (|k or K| - |A|) with K the union of the predicted components
            that touch k and A the pixels of K on other true components.
        ppv: share of truth in each predicted component, PPV(p) = |p and GT| / |p|.
        images: int (3, len(TAUS)) per image: TP = #(sIoU >= tau), FN = #(sIoU < tau),
            FP = #(PPV < tau).
    """

    siou: list[float] = field(default_factory=list)
    ppv: list[float] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)

    def add(
        self,
        predicted: np.ndarray,
        anomaly: np.ndarray,
        valid: np.ndarray,
        weights: np.ndarray | None = None,
    ) -> None:
        """Adds one image: three bool arrays (H, W); void pixels are left out on both sides.

        Predicted components under `MIN_PREDICTED` pixels are dropped; true ones under
        `MIN_TRUTH` become void once the prediction is labelled.

        Args:
            weights: float (H, W) >= 0: what each pixel counts in |.|; 1 if absent. The two minimum
                sizes stay numbers of pixels. Components without any weight are left out.
        """
        truth, tiny = _components(anomaly & valid, MIN_TRUTH)
        components, _ = _components(predicted & valid, MIN_PREDICTED)
        components[tiny] = 0
        overlap = _overlap(truth, components, weights)
        siou, ppv = _adjusted_iou(overlap), _precision(overlap)
        found = siou[:, None] >= TAUS
        false = ppv[:, None] < TAUS
        self.images.append(np.stack([found.sum(0), (~found).sum(0), false.sum(0)]))
        self.siou += siou.tolist()
        self.ppv += ppv.tolist()

    def f1_star(self) -> float:
        """The mean F1 over `TAUS`; NaN without any component."""
        return float(f1_star(np.sum(self.images, 0))) if self.images else float("nan")


def f1_star(counts: np.ndarray) -> np.ndarray:
    """Mean over tau of F1(tau) = 2 TP / (2 TP + FN + FP).

    Args:
        counts: (..., 3, len(TAUS)), TP, FN and FP, as in `ComponentCounts.images`, summed.

    Returns:
        (...), NaN where there is no component.
    """
    true, missed, false = np.moveaxis(np.asarray(counts, np.float64), -2, 0)
    with np.errstate(invalid="ignore"):
        return np.asarray((2 * true / (2 * true + missed + false)).mean(-1))


def _components(mask: np.ndarray, minimum: int) -> tuple[np.ndarray, np.ndarray]:
    """8-connected components of at least ``minimum`` pixels, and where the smaller ones are.

    Returns:
        int32 (H, W), components numbered from 1, 0 elsewhere; bool (H, W).
    """
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    large = np.bincount(labels.ravel(), minlength=count) >= minimum
    large[0] = False
    numbers = np.where(large, large.cumsum(), 0).astype(np.int32)
    kept = numbers[labels]
    return kept, (kept == 0) & (labels > 0)


def _overlap(truth: np.ndarray, components: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Pixels (or weight) that each true and each predicted component share.

    Returns:
        float64 (true + 1, predicted + 1); row and column 0 stand for no component.
    """
    rows, columns = int(truth.max()) + 1, int(components.max()) + 1
    pairs = truth.ravel() * columns + components.ravel()
    weights = None if weights is None else weights.ravel()
    table = np.bincount(pairs, weights, minlength=rows * columns).reshape(rows, columns)
    return table.astype(np.float64)


def _adjusted_iou(overlap: np.ndarray) -> np.ndarray:
    """sIoU of each true component. What is left of |k or K| - |A| is k and K's background."""
    shared = overlap[1:, 1:]
    union = overlap[1:].sum(1) + (shared > 0) @ overlap[0, 1:]
    return np.asarray(shared.sum(1)[union > 0] / union[union > 0])


def _precision(overlap: np.ndarray) -> np.ndarray:
    """PPV of each predicted component that counts."""
    size = overlap[:, 1:].sum(0)
    return np.asarray(overlap[1:, 1:].sum(0)[size > 0] / size[size > 0])


def pixel_weights(
    labels: np.ndarray, anomaly: np.ndarray, frequencies: Mapping[int, float]
) -> np.ndarray:
    """What each pixel weighs, float64 (H, W) in [0, 1]: what training images often hold, little.

    The paper's weighting (Ancha et al. 2025): a pixel of an in-distribution class weighs
    1 - f(class), f the share of training images that hold the class; an out-of-distribution pixel
    weighs 1. AUC-PR is then average precision on sums of weights in place of counts. The paper
    divides it by the value that a perfect scorer reaches. With average precision and one weight per
    pixel that value is 1: such a scorer finds all anomalous weight before any nominal one, so every
    term (R_i - R_{i-1}) P_i has P_i = 1, and the terms sum to 1 whatever the weights. Nothing is
    left to divide by.

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
