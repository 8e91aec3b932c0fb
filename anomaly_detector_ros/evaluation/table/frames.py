"""Single frames of an evaluation: their maps in one scale, and the mask held against the truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from anomaly_detector_ros.evaluation.datasets.base import LabelledImage
from anomaly_detector_ros.evaluation.metrics.pixels import Curve, PixelCounts
from anomaly_detector_ros.evaluation.table.gallery import verdict_picture


@dataclass(frozen=True)
class MeasuredFrame:
    """What there is to see of one frame.

    Attributes:
        name: of the image.
        source: its file.
        layers: "input", "edited" if there is an edit, "truth", uint8 RGB (H, W, 3); and by the name
            of each method its map, float32 (H, W): see `exceeded`.
        values: "auc_pr", of its pixels alone; "found", the share of its anomalous pixels in the
            mask; "false", that of its nominal ones; "anomalous", the share that is anomalous. NaN
            where that is not defined.
    """

    name: str
    source: str
    layers: dict[str, np.ndarray]
    values: dict[str, float]


@dataclass(frozen=True)
class _Judged:
    mask: np.ndarray
    anomaly: np.ndarray
    valid: np.ndarray


def measured_frame(
    truth: LabelledImage,
    maps: Mapping[str, np.ndarray],
    curves: Mapping[str, Curve],
    threshold: float,
    edited: np.ndarray | None,
) -> MeasuredFrame:
    """What there is to see of one frame.

    Args:
        truth: the image and its labels.
        maps: float32 (H, W) by method; the first one is held against the truth.
        curves: of the whole data set, by method.
        threshold: of the first method, from which a pixel is an anomaly.
        edited: uint8 RGB, the edit if there is one.
    """
    first = next(iter(maps.values()))
    judged = _Judged(first >= threshold, truth.anomaly, truth.valid)
    counts = PixelCounts()
    counts.add(first, truth.anomaly, truth.valid)
    metrics = counts.result()
    edit = {} if edited is None else {"edited": edited}
    return MeasuredFrame(
        truth.name,
        str(truth.file),
        {
            "input": truth.image,
            **edit,
            **{name: exceeded(scores, curves[name]) for name, scores in maps.items()},
            "truth": verdict_picture(truth.image, judged),
        },
        {
            "auc_pr": metrics.auc_pr,
            "found": _share(judged.mask, truth.anomaly & truth.valid),
            "false": _share(judged.mask, ~truth.anomaly & truth.valid),
            "anomalous": metrics.anomaly_share,
        },
    )


def exceeded(scores: np.ndarray, curve: Curve) -> np.ndarray:
    """The share of the data set's nominal pixels that score lower, float32 (H, W).

    So maps of all methods have one scale, that of a calibrated heatmap, whatever their scores are.
    """
    if not len(curve.thresholds) or not curve.nominal[-1]:
        return np.zeros(scores.shape, np.float32)
    # Thresholds fall; each score belongs to the highest that it reaches.
    place = np.searchsorted(curve.thresholds[::-1], scores, side="right") - 1
    reached = curve.nominal[::-1][np.maximum(place, 0)]
    return np.asarray(1 - reached / curve.nominal[-1], np.float32)


def _share(mask: np.ndarray, among: np.ndarray) -> float:
    return float(mask[among].mean()) if among.any() else float("nan")
