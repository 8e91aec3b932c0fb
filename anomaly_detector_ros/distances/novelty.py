"""How new an image is to a memory of nominal features, and how little that is so of its edits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor

from anomaly_detector_ros.distances.base import (
    DISTANCES,
    Distance,
    DistanceSettings,
    NominalImages,
    Tensors,
)


@DISTANCES.register("novelty")
@dataclass(frozen=True)
class Novelty(DistanceSettings):
    """Settings of the novelty distance.

    Attributes:
        memory: how many feature vectors it holds.
        edit_weight: w; see `NoveltyDistance`.
    """

    fitted = True

    memory: Annotated[int, Ge(1), Le(200_000)] = 8000
    edit_weight: Annotated[float, Ge(0), Le(10)] = 0.25

    def build(self, learnt: Tensors) -> NoveltyDistance:
        """See `DistanceSettings`."""
        memory = learnt["memory"]
        if memory.ndim != 2 or not len(memory) or not torch.isfinite(memory).all():
            raise ValueError("its memory of nominal features is damaged")
        return NoveltyDistance(memory, self.edit_weight)

    def collect(self, images: NominalImages, sets: int) -> Tensors:
        """See `DistanceSettings`: this set's share of the memory."""
        return {"memory": images.sample(-(-self.memory // sets))}

    def collect_key(self) -> Mapping[str, object]:
        """See `DistanceSettings`."""
        return {"memory": self.memory}

    def fit(self, collected: Sequence[Tensors]) -> NoveltyDistance:
        """See `DistanceSettings`."""
        return NoveltyDistance(torch.cat([each["memory"] for each in collected]), self.edit_weight)


class NoveltyDistance(Distance):
    """Distance of the image from nominal features, and nearness of its edits to them.

    With N(a) = min over memory m of 1 - cos(a, m), a the features of the image as the camera gave
    it and b_k those of its K edits:

        mean_k [N(a) + w (1 - N(b_k))]

    N alone is the nearest-neighbour baseline. What stays new to the memory in the edits too, such
    as foliage that looks unlike that of the training images, counts for less than what the edits
    replaced by something well known.

    Args:
        memory: m, (M, C) nominal feature vectors of any lengths but 0.
        edit_weight: w, at least 0.
    """

    full_resolution = True

    def __init__(self, memory: Tensor, edit_weight: float) -> None:
        self.memory = F.normalize(memory.float(), dim=1)
        self.edit_weight = edit_weight

    def to(self, device: torch.device | str) -> NoveltyDistance:
        """See `Distance`."""
        return NoveltyDistance(self.memory.to(device), self.edit_weight)

    def tensors(self) -> dict[str, Tensor]:
        """See `Distance`; half precision moves a distance by less than 0.001."""
        return {"memory": self.memory.half().cpu()}

    def __call__(self, original: Tensor, edits: Tensor) -> Tensor:
        """See `Distance`: one map per edit, at least 0."""
        novelty = self._novelty(torch.cat([original.float(), edits.float()]))
        return (novelty[:1] + self.edit_weight * (1 - novelty[1:])).clamp(min=0)

    def _novelty(self, features: Tensor) -> Tensor:
        """N of features (B, C, h, w): (B, h, w)."""
        vectors = F.normalize(features.permute(0, 2, 3, 1), dim=-1)
        # One image at a time: the products with all of the memory are many.
        nearest = [(each.flatten(0, 1) @ self.memory.T).amax(1) for each in vectors]
        return (1 - torch.stack(nearest)).view(len(features), *features.shape[-2:])
