"""What a detector finds in one image, a score of it, and what an image must be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anomaly_detector_ros.errors import UserError

# The share of a frame's pixels that must reach the frame's score.
FRAME_SHARE = 0.001


@dataclass(frozen=True)
class Detection:
    """The anomalies of one image; all arrays have the size of the input image.

    Attributes:
        heatmap: float32 (H, W) in [0, 1], higher is more anomalous. Calibrated: the share of
            nominal pixels with a lower score; else the raw distance, clipped.
        mask: bool (H, W), heatmap at or above the threshold.
        segments: int32 (H, W), the segment a pixel belongs to, 0 for none.
        edited: uint8 RGB (H, W, 3), the synthesised image.
        score: the frame's anomaly score in [0, 1]; see `frame_score`.
        timings: seconds by stage: synthesis, features, upsampling, segmentation, scoring, total.
        uncertainty: float32 (H, W), standard deviation of the raw distances of the edits, before
            the average over segments; 0 where there is one edit.
        scores: float32 (H, W), what the heatmap was made of: raw distances averaged over segments,
            less what the distance takes off for the level of the last frames.
        calibrated: whether the heatmap is.
        level: the median of the raw distances; see `calibration.level`.
        features: float16 (1 + K, C, h, w), directions of the features of the image and its K edits,
            which lessons are made of; None where images are compared square by square.
    """

    heatmap: np.ndarray
    mask: np.ndarray
    segments: np.ndarray
    edited: np.ndarray
    score: float
    timings: dict[str, float]
    uncertainty: np.ndarray
    scores: np.ndarray
    calibrated: bool = False
    level: float = 0.0
    features: np.ndarray | None = None


def check_image(image: np.ndarray) -> None:
    """Raises UserError unless the image is a non-empty uint8 RGB array (H, W, 3)."""
    if (
        not isinstance(image, np.ndarray)
        or image.dtype != np.uint8
        or image.ndim != 3
        or image.shape[2] != 3
        or image.size == 0
    ):
        found = f"{getattr(image, 'dtype', type(image))} {getattr(image, 'shape', '')}".strip()
        raise UserError(f"image is {found}: give a non-empty uint8 RGB array (H, W, 3)")


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
