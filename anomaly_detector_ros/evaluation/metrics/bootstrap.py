"""Bootstrap over images: how far would a metric move on another draw of such images?

Pixels of one image are alike, so whole images are resampled (Efron & Tibshirani 1993, percentile
interval). A resample is how often it holds each image; its counts are sums of the images' counts
times these numbers, so no pixel is touched again. Frames of one video are alike too: intervals
over such images are too narrow, not too wide.
"""

from __future__ import annotations

import numpy as np

from anomaly_detector_ros.evaluation.metrics import curves
from anomaly_detector_ros.evaluation.metrics.components import f1_star
from anomaly_detector_ros.evaluation.metrics.pixels import Curve

MAX_THRESHOLDS = 2048
_AT_ONCE = 100


def resampled_f1_star(images: list[np.ndarray], draws: np.ndarray) -> np.ndarray:
    """Component F1* of each resample, (resamples,), from `ComponentCounts.images`."""
    return f1_star(np.tensordot(draws, np.stack(images).astype(np.float64), 1))


class ImageCurves:
    """Each image's cumulative counts at thresholds that all images share.

    At most `MAX_THRESHOLDS`, at quantiles of the scores of anomalous and of nominal pixels, as
    many of either, so that both the recall and the false-positive rate take small steps. Where
    there are no more different scores than that, resampling is exact.

    Args:
        pooled: the curve of everything that will be added.
    """

    def __init__(self, pooled: Curve) -> None:
        chosen = _spread(pooled)
        self.thresholds = pooled.thresholds[chosen]
        self._pooled = np.stack([pooled.anomalous[chosen], pooled.nominal[chosen]])
        self._images: list[np.ndarray] = []

    def add(
        self,
        scores: np.ndarray,
        anomaly: np.ndarray,
        valid: np.ndarray,
        weights: np.ndarray | None = None,
    ) -> None:
        """Adds one image: float32, bool, bool and float arrays (H, W)."""
        masks = [valid & anomaly, valid & ~anomaly]
        rows = [_reaching(scores[mask], self.thresholds) for mask in masks]
        if weights is not None:
            rows.append(_reaching(scores[masks[1]], self.thresholds, weights[masks[1]]))
        # Counts are exact: one image has fewer than 2^24 pixels.
        self._images.append(np.stack(rows).astype(np.float32))

    def resampled(self, draws: np.ndarray) -> dict[str, np.ndarray]:
        """Metrics of each resample, (resamples,): auc_pr, auroc and fpr95.

        If weights were added, paper_auc_pr too: weighted nominal pixels, anomalous ones weigh 1.

        Args:
            draws: as `draw` returns, (resamples, images).

        Raises:
            ValueError: the images together are not what the pooled curve counted.
        """
        images = np.stack(self._images).astype(np.float64)
        if not np.array_equal(images[:, :2].sum(0), self._pooled):
            raise ValueError("scores or truth differ between the two passes over the images")
        parts = []
        for chunk in np.split(draws, range(_AT_ONCE, len(draws), _AT_ONCE)):
            true, *false = np.tensordot(chunk, images, 1).swapaxes(0, 1)
            parts.append(_metrics(true, *false))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _spread(curve: Curve) -> np.ndarray:
    """Rising indices of at most `MAX_THRESHOLDS` points of a curve, the last one among them."""
    if len(curve.thresholds) <= MAX_THRESHOLDS:
        return np.arange(len(curve.thresholds))
    shares = np.linspace(0, 1, MAX_THRESHOLDS // 2 + 1)[1:]
    counts = (curve.anomalous, curve.nominal)
    return np.unique([np.searchsorted(of, shares * of[-1]) for of in counts])


def _reaching(
    scores: np.ndarray, thresholds: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """How many scores (or how much weight) reach each threshold, float64 (T,)."""
    if weights is None:
        return len(scores) - np.searchsorted(np.sort(scores), thresholds).astype(np.float64)
    order = np.argsort(scores)
    below = np.append(0, np.cumsum(weights[order]))
    return below[-1] - below[np.searchsorted(scores[order], thresholds)]


def _metrics(
    true: np.ndarray, false: np.ndarray, weighted: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Metrics of curves (resamples, T)."""
    metrics = {
        "auc_pr": curves.average_precision(true, false),
        "auroc": curves.auroc(true, false),
        "fpr95": curves.fpr_at_tpr(true, false),
    }
    if weighted is not None:
        metrics["paper_auc_pr"] = curves.average_precision(true, weighted)
    return metrics
