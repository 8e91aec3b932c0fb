"""How new an image is to a memory of nominal features, and how little that is so of its edits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_detector_ros.distances.base import spread_of


class NoveltyDistance:
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
        """The same on another device."""
        return NoveltyDistance(self.memory.to(device), self.edit_weight)

    def tensors(self) -> dict[str, Tensor]:
        """For a file; half precision moves a distance by less than 0.001."""
        weight = torch.tensor(self.edit_weight, dtype=torch.float64)
        return {"memory": self.memory.half().cpu(), "edit_weight": weight}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> NoveltyDistance:
        """As `tensors` gave them.

        Raises:
            ValueError: another shape, or values that are not finite.
        """
        memory, weight = tensors["memory"], float(tensors["edit_weight"])
        if memory.ndim != 2 or not len(memory) or not torch.isfinite(memory).all():
            raise ValueError("its memory of nominal features is damaged")
        if not 0 <= weight <= 10:
            raise ValueError(f"its edit_weight {weight:g} is out of range")
        return cls(memory, weight)

    def __call__(self, original: Tensor, edits: Tensor) -> Tensor:
        """See `Distance`: one map per edit, at least 0."""
        novelty = self._novelty(torch.cat([original.float(), edits.float()]))
        return (novelty[:1] + self.edit_weight * (1 - novelty[1:])).clamp(min=0)

    def _novelty(self, features: Tensor) -> Tensor:
        """N of features (B, C, h, w): (B, h, w)."""
        vectors = F.normalize(features.permute(0, 2, 3, 1), dim=-1)
        # One image at a time: the products with all of the memory are many.
        nearest = [(each.flatten(0, 1) @ self.memory.T).amax(1) for each in vectors]
        return (1 - torch.stack(nearest)).unflatten(1, features.shape[-2:])

    def anomaly(self, maps: Tensor) -> Tensor:
        """See `Distance`."""
        return maps.mean(0)

    def spread(self, maps: Tensor) -> Tensor:
        """See `Distance`."""
        return spread_of(maps)
