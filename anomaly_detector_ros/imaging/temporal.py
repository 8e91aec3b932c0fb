"""A temporal filter of heatmaps: what flickers from frame to frame fades."""

from __future__ import annotations

import math

import numpy as np

GAP = 5.0
"""After this many time constants without a frame the average starts anew (e^-5 < 1% is left)."""


class TemporalFilter:
    """Exponential average of one camera's heatmaps, pixel by pixel.

    y_k = y_{k-1} + (1 - exp(-dt / tau)) (x_k - y_{k-1}), dt the difference of the frames' stamps:
    the same smoothing at any frame rate. Pixels are averaged where they are in the image: nothing
    makes up for the camera's own motion, so when it moves the average smears, by what passes
    within about one time constant.

    It starts anew with a frame of another size, with a stamp that is not later than the last one
    (a bag that plays again, a clock set back, stamps that are all zero), and after `GAP`.
    """

    def __init__(self) -> None:
        self._average: np.ndarray | None = None
        self._stamp = 0

    def reset(self) -> None:
        """Forgets the frames seen."""
        self._average = None

    def update(self, heatmap: np.ndarray, stamp: int, time_constant: float) -> np.ndarray:
        """The average after one more frame.

        Args:
            heatmap: float32 (H, W) in [0, 1].
            stamp: the frame's, nanoseconds.
            time_constant: tau in seconds; 0: the heatmap is returned as it is.

        Returns:
            float32 (H, W) in [0, 1], not to be written to.
        """
        if time_constant <= 0:
            self._average = None
            return heatmap
        seconds = (stamp - self._stamp) * 1e-9
        before = self._average
        goes_on = (
            before is not None
            and before.shape == heatmap.shape
            and 0 < seconds <= GAP * time_constant
        )
        if goes_on:
            weight = np.float32(-math.expm1(-seconds / time_constant))
            heatmap = before + weight * (heatmap - before)
        self._average, self._stamp = heatmap, stamp
        return heatmap
