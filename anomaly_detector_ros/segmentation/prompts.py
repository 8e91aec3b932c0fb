"""Where to prompt a segmenter: the peaks of an anomaly map."""

from __future__ import annotations

import cv2
import numpy as np
from skimage.feature import peak_local_max

# Peaks are searched at this longest side (pixels): feature maps are far coarser anyway.
_SEARCH_SIDE = 256


def anomaly_peaks(
    anomaly_map: np.ndarray,
    *,
    max_prompts: int = 16,
    min_distance: float = 0.03,
    floor: float = 0.2,
) -> np.ndarray:
    """Positions of the highest local maxima of an anomaly map, highest first.

    Args:
        anomaly_map: float (H, W).
        max_prompts: no more than this many.
        min_distance: between two peaks, as a fraction of the longer side.
        floor: peaks must rise above the map's median by this fraction of (maximum - median), so
            that ripples of the background are not prompted. A map without any rise has no peaks.

    Returns:
        float32 (N, 2): x, y in pixels of the map.
    """
    height, width = anomaly_map.shape
    scale = min(1.0, _SEARCH_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = anomaly_map.astype(np.float32, copy=False)
    if scale < 1.0:
        small = cv2.resize(small, size, interpolation=cv2.INTER_AREA)
    median, top = float(np.median(small)), float(small.max())
    if not top > median:
        return np.zeros((0, 2), np.float32)
    peaks = peak_local_max(
        small,
        min_distance=max(1, round(min_distance * max(size))),
        threshold_abs=median + floor * (top - median),
        exclude_border=False,
        num_peaks=max_prompts,
    )
    # Pixel centres of the small map, in pixels of the full one.
    ratio = np.array([width / size[0], height / size[1]], np.float32)
    return ((peaks[:, ::-1] + 0.5) * ratio - 0.5).astype(np.float32)
