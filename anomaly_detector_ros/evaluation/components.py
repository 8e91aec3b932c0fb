"""Component F1*: are whole objects found? (Chan et al. 2021, SegmentMeIfYouCan)."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

MIN_PREDICTED = 500
MIN_TRUTH = 100
TAUS = np.arange(0.25, 0.751, 0.05)


@dataclass
class ComponentCounts:
    """Component scores of all images added: ``siou`` per true component, ``ppv`` per predicted."""

    siou: list[float] = field(default_factory=list)
    ppv: list[float] = field(default_factory=list)

    def add(self, predicted: np.ndarray, anomaly: np.ndarray, valid: np.ndarray) -> None:
        """Adds one image: three bool arrays (H, W); void pixels are left out on both sides.

        Predicted components under `MIN_PREDICTED` pixels are dropped; true ones under
        `MIN_TRUTH` become void once the prediction is labelled.
        """
        truth = _components(anomaly & valid, 1)
        components = _components(predicted & valid, MIN_PREDICTED)
        sizes = np.bincount(truth.ravel())
        small = np.flatnonzero(sizes < MIN_TRUTH)
        tiny = np.isin(truth, small[small > 0])
        truth[tiny], components[tiny] = 0, 0
        for k in np.unique(truth[truth > 0]):
            self.siou.append(_adjusted_iou(truth, components, k))
        for p in np.unique(components[components > 0]):
            self.ppv.append(float((truth[components == p] > 0).mean()))

    def f1(self, tau: float) -> float:
        """2 TP / (2 TP + FN + FP) where a component counts as found from ``tau`` on."""
        siou, ppv = np.array(self.siou), np.array(self.ppv)
        true = int((siou >= tau).sum())
        missed, false = int((siou < tau).sum()), int((ppv < tau).sum())
        total = 2 * true + missed + false
        return 2 * true / total if total else float("nan")

    def f1_star(self) -> float:
        """The mean of `f1` over `TAUS`; NaN without any component."""
        return float(np.mean([self.f1(tau) for tau in TAUS]))


def _components(mask: np.ndarray, minimum: int) -> np.ndarray:
    """8-connected components, int32 (H, W), those under ``minimum`` pixels removed."""
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    sizes = np.bincount(labels.ravel(), minlength=count)
    labels[(sizes < minimum)[labels]] = 0
    return labels


def _adjusted_iou(truth: np.ndarray, components: np.ndarray, k: int) -> float:
    """sIoU(k) = |k and K| / (|k or K| - |A|): other true components in K do not count against k."""
    here = truth == k
    touching = np.unique(components[here])
    union = np.isin(components, touching[touching > 0])
    elsewhere = union & (truth > 0) & ~here
    return float((here & union).sum() / ((here | union).sum() - elsewhere.sum()))
