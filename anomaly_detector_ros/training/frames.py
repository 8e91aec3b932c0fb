"""Choosing training frames from a recording: neither blurred nor like the one before."""

from __future__ import annotations

import cv2
import numpy as np

_SHARPNESS_WIDTH = 320
_CHANGE_SIZE = (64, 36)  # width, height


class FrameFilter:
    """Tells which frames of a recording, shown one after the other, to train on.

    Args:
        min_sharpness: see `sharpness`; a heavily blurred or featureless frame has 0 to 30, off-road
            scenes a few hundred and more.
        min_change: mean absolute difference of grey values, 0 to 255, from the last frame kept, at
            64x36; noise and compression make about 1, a robot on the move over 10.

    Attributes:
        blurred: frames refused so far as too blurred.
        repeated: frames refused so far as too like the last one kept.
    """

    def __init__(self, min_sharpness: float, min_change: float) -> None:
        self.min_sharpness, self.min_change = min_sharpness, min_change
        self.blurred = self.repeated = 0
        self._last: np.ndarray | None = None

    def keeps(self, picture: np.ndarray) -> bool:
        """Whether to train on a frame, uint8 RGB (H, W, 3)."""
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        small = cv2.resize(grey, _CHANGE_SIZE, interpolation=cv2.INTER_AREA)
        if self._last is not None and cv2.absdiff(small, self._last).mean() < self.min_change:
            self.repeated += 1
            return False
        if sharpness(grey) < self.min_sharpness:
            self.blurred += 1
            return False
        self._last = small
        return True


def sharpness(grey: np.ndarray) -> float:
    """Variance of the Laplacian of a picture brought to 320 columns, so that sizes compare.

    Args:
        grey: uint8 (H, W).
    """
    height = max(1, round(grey.shape[0] * _SHARPNESS_WIDTH / grey.shape[1]))
    small = cv2.resize(grey, (_SHARPNESS_WIDTH, height), interpolation=cv2.INTER_AREA)
    return float(cv2.Laplacian(small, cv2.CV_32F).var())
