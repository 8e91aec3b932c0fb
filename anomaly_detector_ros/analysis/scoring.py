"""Distances between feature maps, averages over segments, and one score for a frame."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from anomaly_detector_ros.errors import UserError

# The share of a frame's pixels that must reach the frame's score.
FRAME_SHARE = 0.001


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - cosine similarity of feature maps (B, C, h, w): (B, h, w) float32 in [0, 2].

    0 for the same direction, 1 for orthogonal features, 2 for opposite ones. A zero vector is
    at distance 1 from everything.
    """
    # Rounding makes the similarity of equal vectors slightly more than 1.
    return (1.0 - F.cosine_similarity(a.float(), b.float(), dim=1)).clamp_(0.0, 2.0)


def segment_average(
    anomaly_map: np.ndarray,
    segments: np.ndarray,
    uncovered: Literal["raw", "zero"] = "raw",
) -> np.ndarray:
    """Give each segment's pixels the mean of the anomaly map over the segment.

    Args:
        anomaly_map: float (H, W).
        segments: int (H, W), ids from 1, 0 where there is none.
        uncovered: pixels without a segment keep their own value ("raw") or take 0 ("zero", as
            in the paper's code).

    Returns:
        float32 (H, W).
    """
    if uncovered not in ("raw", "zero"):
        raise UserError(f"uncovered {uncovered!r}: take raw or zero")
    if anomaly_map.shape != segments.shape:
        raise UserError(
            f"segments of shape {segments.shape}: the anomaly map has {anomaly_map.shape}"
        )
    ids = segments.ravel()
    values = anomaly_map.ravel()
    counts = np.bincount(ids)
    means = np.bincount(ids, weights=values) / np.maximum(counts, 1)
    averaged = means.astype(np.float32)[ids]
    none = ids == 0
    averaged[none] = values[none] if uncovered == "raw" else 0.0
    return averaged.reshape(anomaly_map.shape)


def frame_score(anomaly_map: np.ndarray, share: float = FRAME_SHARE) -> float:
    """The highest value that at least ``share`` of the pixels reach (their 99.9th percentile).

    Unlike the maximum it does not follow a single bad pixel, and unlike the mean it does not
    forget a small object in a large image. NaN is not allowed.
    """
    values = np.asarray(anomaly_map).ravel()
    if values.size == 0:
        raise UserError("anomaly map: empty: give at least one pixel")
    rank = values.size - max(1, int(np.ceil(share * values.size)))
    return float(np.partition(values, rank)[rank])
