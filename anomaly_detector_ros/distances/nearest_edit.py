"""How new each place of the image is to its own edits, wherever in them its like may lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from anomaly_detector_ros.distances.base import DISTANCES, Distance, DistanceSettings, Tensors


@DISTANCES.register("nearest_edit")
@dataclass(frozen=True)
class NearestEdit(DistanceSettings, Distance):
    """Mean of 1 - cos over the k vectors of an edit that are nearest to the image's own.

    An edit moves trunks, clouds and stones, so a nominal place differs from the same place of the
    edit. It still finds its like somewhere in the edit, which is a nominal scene in the same light:
    the edit serves as a memory of its own image. What was removed finds none. Of several edits the
    nearest one counts at each place.

    Attributes:
        neighbours: k; an edit with fewer vectors gives all of its own.
    """

    full_resolution = True

    neighbours: Annotated[int, Ge(1)] = 8

    def build(self, learnt: Tensors) -> NearestEdit:
        """Itself: there is nothing to learn."""
        return self

    def __call__(self, original: Tensor, edits: Tensor) -> Tensor:
        """See `Distance`: one map per edit, 0 to 2."""
        image = F.normalize(original[0].float().flatten(1), dim=0)
        size = original.shape[-2:]
        maps = []
        for edit in edits:
            vectors = F.normalize(edit.float().flatten(1), dim=0)
            likeness = image.T @ vectors
            nearest = likeness.topk(min(self.neighbours, vectors.shape[1]), dim=1).values
            maps.append((1 - nearest.mean(1)).clamp(0, 2).reshape(size))
        return torch.stack(maps)

    def anomaly(self, maps: Tensor) -> Tensor:
        """See `Distance`."""
        return maps.amin(0)
