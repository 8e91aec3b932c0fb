"""Superpixels: a cheap segmentation that needs no network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import cv2
import numpy as np
from annotated_types import Ge, Gt
from skimage.segmentation import slic

from anomaly_detector_ros.segmentation.base import SEGMENTERS, SegmenterSettings
from anomaly_detector_ros.weights.loading import Loader


@SEGMENTERS.register("superpixels")
@dataclass(frozen=True, kw_only=True)
class Superpixels(SegmenterSettings):
    """SLIC superpixels; every pixel belongs to one.

    Attributes:
        count: about how many segments an image has.
        compactness: the weight of nearness against likeness of colour (CIELAB).
        max_side: the image is shrunk to this longest side (pixels) for the clustering, which
            makes it several times faster at little loss; segment borders are then that coarse.
    """

    needs_map = False

    count: Annotated[int, Ge(1)] = 400
    compactness: Annotated[float, Gt(0)] = 10.0
    max_side: Annotated[int, Ge(16)] = 256

    def build(self, loader: Loader | None = None) -> Superpixels:
        """Itself: it has no weights."""
        return self

    def segment(self, image: np.ndarray, anomaly_map: np.ndarray | None = None) -> np.ndarray:
        """uint8 RGB (H, W, 3) -> int32 (H, W), ids 1..N. The anomaly map is not used."""
        height, width = image.shape[:2]
        scale = min(1.0, self.max_side / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = image if scale == 1.0 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        labels: np.ndarray = slic(
            small,
            n_segments=self.count,
            compactness=self.compactness,
            max_num_iter=5,  # more changes the borders hardly and doubles the time
            start_label=1,
            channel_axis=2,
        ).astype(np.int32)
        if scale == 1.0:
            return labels
        full = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        return np.asarray(full)
