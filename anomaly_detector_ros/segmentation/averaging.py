"""Averages of an anomaly map over segments."""

from __future__ import annotations

from typing import Literal

import numpy as np

from anomaly_detector_ros.errors import UserError


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
