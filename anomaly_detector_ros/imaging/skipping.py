"""Frames that hardly differ from the last one looked at: what was found there still holds."""

from __future__ import annotations

from typing import Generic, TypeVar

import cv2
import numpy as np

MAX_SKIPPED = 10
_GRID = (64, 36)
"""Width and height of the thumbnails: a cell is 20x20 pixels of a 1280x720 image."""

Result = TypeVar("Result")


class FrameSkipper(Generic[Result]):
    """Remembers the last frame that was looked at, as a small grey thumbnail, and its result.

    As StreamDiffusion's similar-image filter (Kodaira et al. 2023) skips frames, but by the cell
    that changed most rather than by the similarity of the whole images, in which a small object
    that appears would go unnoticed. A frame is compared with the last one looked at, not with the
    last one skipped: slow changes add up until they count. One skipper per camera.

    Example:
        >>> skipper = FrameSkipper()
        >>> grey = np.full((72, 128, 3), 90, np.uint8)
        >>> skipper.remember(grey, "nothing there")
        >>> skipper.recall(grey + np.uint8(1), max_change=2.0)
        'nothing there'
        >>> skipper.recall(grey + np.uint8(9), max_change=2.0) is None
        True
    """

    def __init__(self) -> None:
        self._last: tuple[tuple[int, ...], np.ndarray, Result] | None = None
        self._skipped = 0

    def reset(self) -> None:
        """Forgets the frame and its result."""
        self._last = None

    def recall(
        self, image: np.ndarray, max_change: float, max_skipped: int = MAX_SKIPPED
    ) -> Result | None:
        """The result of the last frame looked at, if it may stand for this one's; else None.

        Args:
            image: uint8 RGB (H, W, 3).
            max_change: of the mean grey value of any of 64x36 cells, 0 to 255; 0 or less: None,
                always. Noise and compression change a cell by about 1.
            max_skipped: frames in a row that may take the same result.
        """
        last = self._last  # may be forgotten in another thread meanwhile
        if max_change <= 0 or last is None or self._skipped >= max_skipped:
            return None
        shape, thumbnail, result = last
        if shape != image.shape or cv2.absdiff(_thumbnail(image), thumbnail).max() > max_change:
            return None
        self._skipped += 1
        return result

    def remember(self, image: np.ndarray, result: Result) -> None:
        """Keeps the result of a frame that was looked at, uint8 RGB (H, W, 3)."""
        self._last = (image.shape, _thumbnail(image), result)
        self._skipped = 0


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """Mean grey value of each cell, float32 (36, 64)."""
    small = cv2.resize(image, _GRID, interpolation=cv2.INTER_AREA).astype(np.float32)
    return cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
