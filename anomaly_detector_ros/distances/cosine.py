"""The paper's distance: the angle between the features of image and edit."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from anomaly_detector_ros.distances.base import DISTANCES, Distance, DistanceSettings, Tensors


@DISTANCES.register("cosine")
@dataclass(frozen=True)
class CosineDistance(Distance, DistanceSettings):
    """1 - cosine similarity of image and edit, averaged over the edits: 0 to 2."""

    def build(self, learnt: Tensors) -> CosineDistance:
        """Itself: it has neither settings nor anything to learn."""
        return self

    def __call__(self, original: Tensor, edits: Tensor) -> Tensor:
        """See `Distance`: one map per edit."""
        return cosine_distance(original.expand_as(edits), edits)


@DISTANCES.register("squared_cosine")
@dataclass(frozen=True)
class SquaredCosineDistance(CosineDistance):
    """The square of the cosine distance, averaged over the edits: 0 to 4.

    It is taken at the image's size, after the distances are upsampled. A segment's mean then gives
    more to its largest changes.
    """

    def anomaly(self, maps: Tensor) -> Tensor:
        """See `Distance`."""
        return maps.square().mean(0)


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - cosine similarity of feature maps (B, C, h, w): (B, h, w) float32 in [0, 2].

    0 for the same direction, 1 for orthogonal features, 2 for opposite ones. A zero vector is
    at distance 1 from everything.
    """
    # Rounding makes the similarity of equal vectors slightly more than 1.
    return (1.0 - F.cosine_similarity(a.float(), b.float(), dim=1)).clamp_(0.0, 2.0)
