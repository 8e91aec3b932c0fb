"""The paper's weighted AUC-PR and weighted F1* (Ancha et al. 2025).

They are computed as the first author's public experiment code does. That the published table came
from that code is likely, not proven.

What is anomalous is no yes or no here. With f(class) the share of training images that hold a
class, 1 - f is a soft label: how anomalous the pixels of that class are, in or out of distribution.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from anomaly_detector_ros.evaluation.metrics import pixels
from anomaly_detector_ros.evaluation.metrics.components import connected
from anomaly_detector_ros.evaluation.metrics.pixels import PixelCounts

MIN_UNIT = 500
RELATIVE_THRESHOLDS = np.arange(2, 10) / 10


class PaperCounts:
    """The weighted metrics of all images added, each image once.

    Memory does not grow with the number of pixels: an image leaves the mean score of each of its
    components, exactly, and its pixels are counted as `PixelCounts` does.

    Args:
        frequencies: f in [0, 1] by class id, 0 to 255. A class that is not in it was in no training
            image: its soft label is 1.

    Raises:
        ValueError: a frequency is not in [0, 1].
    """

    def __init__(self, frequencies: Mapping[int, float]) -> None:
        self._soft_of = np.ones(256)
        for label, frequency in frequencies.items():
            if not 0 <= frequency <= 1:
                raise ValueError(f"class {label} has frequency {frequency}: shares lie in [0, 1]")
            self._soft_of[label] = 1 - frequency
        self._levels, self._level_of = np.unique(self._soft_of, return_inverse=True)
        self.pixels = PixelCounts()
        self._highest = 0.0
        self._images: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def soft_labels(self, labels: np.ndarray) -> np.ndarray:
        """1 - f of each pixel's class, float64 (H, W) in [0, 1]; ``labels``: integer (H, W)."""
        return np.asarray(self._soft_of[labels])

    def add(self, scores: np.ndarray, labels: np.ndarray, valid: np.ndarray) -> None:
        """Adds one image.

        Args:
            scores: float (H, W), finite, higher is more anomalous.
            labels: integer (H, W), class ids from 0 to 255.
            valid: bool (H, W), False where the truth is void.

        Raises:
            ValueError: a score is not finite, or sizes differ.
        """
        soft = self.soft_labels(labels)
        self.pixels.add(scores, soft, valid)
        self._highest = max(self._highest, float(scores.max()))
        at_level = np.bincount(self._level_of[labels[valid]], minlength=len(self._levels))
        self._images.append((at_level, *_units(scores, labels, valid, soft)))

    def auc_pr(self) -> float:
        """Weighted AUC-PR: the area of the score over the area that 1 - f reaches as a score.

        Over pixels sorted by falling score, void left out: tp_k is the sum of 1 - f of the first k,
        precision tp_k / k, recall tp_k / the sum over all pixels; `pixels.envelope_area` is the
        area. NaN where every soft label is 0, or every one is 1.
        """
        area = self.pixels.result().envelope_auc_pr
        return float(area / self.best_area(np.ones((1, len(self._images))))[0])

    def best_area(self, draws: np.ndarray) -> np.ndarray:
        """The area that 1 - f reaches as a score, on each resample (resamples, images): (...,)."""
        if not self._images:
            return np.full(len(draws), np.nan)
        found = draws @ np.stack([at_level for at_level, _, _ in self._images])
        true = (found * self._levels)[:, ::-1].cumsum(1)
        return pixels.envelope_area(true, found[:, ::-1].cumsum(1) - true)

    def f1_star(self) -> float:
        """Weighted F1*: the best of `RELATIVE_THRESHOLDS` of the highest score of all images.

        Each 8-connected component of `MIN_UNIT` pixels or more of each class is a unit, and all
        else in the image, void too, is one more. A unit whose mean score is above the threshold
        adds 1 - f to TP and f to FP, any other one 1 - f to FN; F1 = 2 TP / (2 TP + FP + FN). The
        f of what is left over is that of its first pixel, row by row. Random scores are no zero
        here: where all units are flagged, F1 is 2 m / (1 + m) with m the units' mean 1 - f.

        NaN without images, and for scores of which none is above zero: these thresholds have no
        meaning for them.
        """
        scores = self._f1_scores(np.ones((1, len(self._images))))[0]
        return float(scores.max())

    def resampled_f1_star(self, draws: np.ndarray) -> np.ndarray:
        """Weighted F1* of each resample (resamples, images), at the threshold of `f1_star`."""
        best = self._f1_scores(np.ones((1, len(self._images))))[0].argmax()
        return np.asarray(self._f1_scores(draws)[:, best])

    def _f1_scores(self, draws: np.ndarray) -> np.ndarray:
        """F1 of each resample at each threshold, (resamples, thresholds)."""
        if not self._highest > 0:
            return np.full((len(draws), len(RELATIVE_THRESHOLDS)), np.nan)
        counts = []
        for _, means, soft in self._images:
            flagged = means[:, None] / self._highest > RELATIVE_THRESHOLDS
            counts.append(np.stack([soft @ flagged, (1 - soft) @ flagged, soft @ ~flagged]))
        true, false, missed = np.tensordot(draws, np.stack(counts), 1).swapaxes(0, 1)
        with np.errstate(invalid="ignore"):
            return np.asarray(2 * true / (2 * true + false + missed))


def _units(
    scores: np.ndarray, labels: np.ndarray, valid: np.ndarray, soft: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The mean score and the soft label of each unit, two float64 (units,)."""
    units = np.zeros(labels.shape, np.int32)
    for label in np.unique(labels[valid]):
        numbers, _ = connected(valid & (labels == label), MIN_UNIT)
        units += np.where(numbers, numbers + units.max(), 0)
    flat = units.ravel()
    sizes = np.bincount(flat)
    means = np.bincount(flat, scores.ravel()) / np.maximum(sizes, 1)
    first = np.zeros(len(sizes), np.intp)
    first[flat[::-1]] = np.arange(flat.size)[::-1]  # of repeated indices the last one stays
    kept = sizes > 0
    return means[kept], soft.ravel()[first[kept]]
