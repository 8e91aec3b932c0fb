"""Anomalies as upright boxes."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

SMALLEST_SHARE = 2e-4
"""Of the image's pixels; what is smaller is a speck, not an object."""


@dataclass(frozen=True)
class Box:
    """An anomaly's upright bounding box.

    Attributes:
        left, top: its first column and row.
        width, height: in pixels.
        score: mean of the heatmap over the anomaly's pixels, in [0, 1].
    """

    left: int
    top: int
    width: int
    height: int
    score: float


def boxes(heatmap: np.ndarray, mask: np.ndarray) -> list[Box]:
    """A box around each 8-connected component of the mask, highest score first.

    Args:
        heatmap: float (H, W) in [0, 1]; values that are not finite count as 0.
        mask: bool (H, W).

    Components under :data:`SMALLEST_SHARE` of the image are left out.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=8
    )
    heat = np.clip(np.nan_to_num(heatmap, posinf=0.0, neginf=0.0), 0.0, 1.0)
    totals = np.bincount(labels.ravel(), heat.ravel(), minlength=count)
    found = []
    for label in range(1, count):  # 0 is what the mask leaves out
        left, top, width, height, area = map(int, stats[label])
        if area >= SMALLEST_SHARE * mask.size:
            found.append(Box(left, top, width, height, min(float(totals[label]) / area, 1.0)))
    return sorted(found, key=lambda box: -box.score)
