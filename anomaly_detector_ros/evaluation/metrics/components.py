"""Component F1*: are whole objects found? (Chan et al. 2021, SegmentMeIfYouCan)."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

MIN_PREDICTED = 500
MIN_TRUTH = 100
# As the benchmark's own code has them: the eighth is 0.6000000000000001, which 0.6 does not reach.
TAUS = np.linspace(0.25, 0.75, 11)


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

    def add(self, predicted: np.ndarray, anomaly: np.ndarray, valid: np.ndarray) -> None:
        """Adds one image: three bool arrays (H, W); void pixels are left out on both sides.

        Predicted components under `MIN_PREDICTED` pixels are dropped; true ones under
        `MIN_TRUTH` become void once the prediction is labelled.
        """
        truth, tiny = connected(anomaly & valid, MIN_TRUTH)
        components, _ = connected(predicted & valid, MIN_PREDICTED)
        components[tiny] = 0
        overlap = _overlap(truth, components)
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


def connected(mask: np.ndarray, minimum: int) -> tuple[np.ndarray, np.ndarray]:
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


def _overlap(truth: np.ndarray, components: np.ndarray) -> np.ndarray:
    """Pixels that each true and each predicted component share.

    Returns:
        float64 (true + 1, predicted + 1); row and column 0 stand for no component.
    """
    rows, columns = int(truth.max()) + 1, int(components.max()) + 1
    pairs = truth.ravel() * columns + components.ravel()
    table = np.bincount(pairs, minlength=rows * columns).reshape(rows, columns)
    return table.astype(np.float64)


def _adjusted_iou(overlap: np.ndarray) -> np.ndarray:
    """sIoU of each true component. What is left of |k or K| - |A| is k and K's background."""
    shared = overlap[1:, 1:]
    return np.asarray(shared.sum(1) / (overlap[1:].sum(1) + (shared > 0) @ overlap[0, 1:]))


def _precision(overlap: np.ndarray) -> np.ndarray:
    """PPV of each predicted component; one that lies on void alone since has none."""
    size = overlap[:, 1:].sum(0)
    return np.asarray(overlap[1:, 1:].sum(0)[size > 0] / size[size > 0])
