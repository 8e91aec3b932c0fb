"""Superpixels: a cheap segmentation that needs no network."""

from __future__ import annotations

import cv2
import numpy as np
from skimage.segmentation import slic

from anomaly_detector_ros.errors import UserError


class SuperpixelSegmenter:
    """SLIC superpixels; every pixel belongs to one.

    Args:
        count: about how many segments an image has.
        compactness: the weight of nearness against likeness of colour (CIELAB).
        max_side: the image is shrunk to this longest side (pixels) for the clustering, which
            makes it several times faster at little loss; segment borders are then that coarse.

    Raises:
        UserError: a setting out of range.
    """

    needs_map = False

    def __init__(self, count: int = 400, *, compactness: float = 10.0, max_side: int = 256) -> None:
        if count < 1 or compactness <= 0 or max_side < 16:
            raise UserError(
                f"superpixels: count {count}, compactness {compactness}, max_side {max_side}: "
                "take count >= 1, compactness > 0, max_side >= 16"
            )
        self.count = count
        self.compactness = compactness
        self.max_side = max_side

    def segment(self, image: np.ndarray, anomaly_map: np.ndarray | None = None) -> np.ndarray:
        """uint8 RGB (H, W, 3) -> int32 (H, W), ids 1..N. The anomaly map is not used."""
        height, width = image.shape[:2]
        scale = min(1.0, self.max_side / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = image if scale == 1.0 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        labels = slic(
            small,
            n_segments=self.count,
            compactness=self.compactness,
            max_num_iter=5,  # more changes the borders hardly and doubles the time
            start_label=1,
            channel_axis=2,
        ).astype(np.int32)
        if scale == 1.0:
            return labels
        return cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
