"""The authors' L2 distance: the squared length of the difference of image and edit."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from anomaly_detector_ros.distances.base import DISTANCES, Distance, DistanceSettings, Tensors


@DISTANCES.register("l2")
@dataclass(frozen=True)
class SquaredDistance(Distance, DistanceSettings):
    """sum_c (x_c - y_c)^2 of the features of image and edit, averaged over the edits."""

    def build(self, learnt: Tensors) -> SquaredDistance:
        """Itself: it has nothing to learn."""
        return self

    def __call__(self, original: Tensor, edits: Tensor) -> Tensor:
        """See `Distance`: one map per edit."""
        return squared_distance(original, edits)


def squared_distance(original: Tensor, edits: Tensor) -> Tensor:
    """Maps or pictures (1, C, h, w) and (K, C, h, w) -> (K, h, w) float32, at least 0.

    Of pictures in [-1, 1] at most 12, between black and white.
    """
    return (edits.float() - original.float()).square().sum(dim=1)
