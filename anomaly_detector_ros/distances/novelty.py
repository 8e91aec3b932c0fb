"""How new an image is to a memory of nominal features, and how far its edits had to go."""

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
from anomaly_detector_ros.distances.cosine import CosineDistance


@DISTANCES.register("novelty")
@dataclass(frozen=True)
class Novelty(DistanceSettings):
    """Settings of the novelty distance; see `NoveltyDistance`.

    Attributes:
        memory: how many feature vectors it holds.
        candidates: how many are drawn for each that it holds; see `spread_out`. 1 holds all drawn.
        lights: in how many other lights it remembers each nominal image besides its own; see
            `imaging.light.vary_light`.
        neighbours: k.
        memory_weight: u; 0 leaves the memory out of the score, which is then the paper's.
        edit_weight: w; 0 leaves the edits out.
        edit_from, edit_to: novelty, less the frame's level, at which a place begins to be edited,
            and from which on it is made anew; no ``edit_to`` edits all places alike.
        frame_level: share of a frame's level that is taken off its scores, in [0, 1]; see
            `calibration.level`.
    """

    fitted = True

    memory: Annotated[int, Ge(1), Le(200_000)] = 4000
    candidates: Annotated[int, Ge(1), Le(100)] = 10
    lights: Annotated[int, Ge(0), Le(20)] = 0
    neighbours: Annotated[int, Ge(1), Le(100)] = 3
    memory_weight: Annotated[float, Ge(0), Le(10)] = 1.0
    edit_weight: Annotated[float, Ge(0), Le(10)] = 0.1
    edit_from: Annotated[float, Ge(-2), Le(2)] = 0.0
    edit_to: Annotated[float, Ge(-2), Le(2)] | None = None
    frame_level: Annotated[float, Ge(0), Le(1)] = 0.5

    @property
    def guides_edits(self) -> bool:
        """See `DistanceSettings`."""
        return self.edit_to is not None

    def build(self, learnt: Tensors) -> NoveltyDistance:
        """See `DistanceSettings`."""
        memory = learnt["memory"]
        if memory.ndim != 2 or not len(memory) or not memory.isfinite().all():
            raise ValueError("its memory of nominal features is damaged")
        return NoveltyDistance(memory, self)

    def collect(self, images: NominalImages, sets: int) -> Tensors:
        """See `DistanceSettings`: this set's share of the memory."""
        count = -(-self.memory // sets)
        return {"memory": spread_out(images.sample(count * self.candidates, self.lights), count)}

    def collect_key(self) -> Mapping[str, object]:
        """See `DistanceSettings`."""
        return {name: getattr(self, name) for name in ("memory", "candidates", "lights")}

    def fit(self, collected: Sequence[Tensors]) -> NoveltyDistance:
        """See `DistanceSettings`: as a file gives it back, so that it scores the same."""
        memory = torch.cat([each["memory"] for each in collected])
        return self.build(NoveltyDistance(memory, self).tensors())


def spread_out(vectors: Tensor, count: int) -> Tensor:
    """Up to ``count`` of the vectors (N, C), such that none of them is far from the nearest one.

    The greedy coreset of Gonzalez (1985) by the angle, as in PatchCore (Roth et al. 2022): each is
    the one farthest from those before it. So rare nominal things are remembered as well as the
    common ones, of which a random draw would hold many alike.
    """
    if count >= len(vectors):
        return vectors
    directions = F.normalize(vectors, dim=1)
    chosen = [0]
    nearest = directions @ directions[0]
    while len(chosen) < count:
        chosen.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, directions @ directions[chosen[-1]])
    return vectors[chosen]


def memory_distance(features: Tensor, memory: Tensor, neighbours: int = 1) -> Tensor:
    """Mean of 1 - cos to the nearest vectors of a memory, of each place: (B, h, w) float32.

    Args:
        features: (B, C, h, w) of any lengths.
        memory: directions (M, C), of length 1.
        neighbours: how many count; all where the memory has fewer.
    """
    vectors = F.normalize(features.float().permute(0, 2, 3, 1), dim=-1)
    count = min(neighbours, len(memory))
    # One image at a time: the products with all of the memory are many.
    nearest = [
        (each.flatten(0, 1) @ memory.T).topk(count, dim=1, sorted=False).values.mean(1)
        for each in vectors
    ]
    return (1 - torch.stack(nearest)).view(len(features), *features.shape[-2:])


class NoveltyDistance(Distance):
    """Distance of the image from nominal features, and from its edits.

    With N(a) = mean over the k nearest m of the memory of 1 - cos(a, m), a the features of the
    image as the camera gave it and b_j those of its J edits:

        mean_j [u N(a) + w (1 - cos(a, b_j))]

    N alone is the nearest-neighbour baseline; u = 0 is the paper's score. N also tells where an
    edit is needed at all (`strength`): a place that the memory knows needs none, and one that is
    new to it is made anew from noise.

    Args:
        memory: m, (M, C) nominal feature vectors of any lengths but 0.
        settings: k, u, w, where edits begin, and the share of a frame's level.
    """

    full_resolution = True

    def __init__(self, memory: Tensor, settings: Novelty) -> None:
        self.memory, self.settings = F.normalize(memory.float(), dim=1), settings
        self.frame_level, self._cosine = settings.frame_level, CosineDistance()

    def to(self, device: torch.device | str) -> NoveltyDistance:
        """See `Distance`."""
        return NoveltyDistance(self.memory.to(device), self.settings)

    def tensors(self) -> dict[str, Tensor]:
        """See `Distance`: directions in 8 bits, which move a distance by less than 0.001."""
        largest = self.memory.abs().amax(1, keepdim=True).clamp(min=1e-12)
        steps = self.memory * (127 / largest)
        return {"memory": steps.round().to(torch.int8).cpu()}

    def strength(self, features: Tensor) -> Tensor:
        """See `Distance`: rises from 0 to 1 with N less the frame's level, neighbours included."""
        novelty = self._novelty(features)
        level = self.frame_level * novelty.flatten(1).median(1).values
        low, high = self.settings.edit_from, self.settings.edit_to
        assert high is not None  # the settings guide edits
        rise = (novelty - level[:, None, None] - low) / max(high - low, 1e-6)
        return F.max_pool2d(rise.clamp(0, 1)[:, None], 3, stride=1, padding=1)[:, 0]

    def __call__(self, original: Tensor, edits: Tensor) -> Tensor:
        """See `Distance`: one map per edit, at least 0; one map where edits are left out."""
        memory_weight, edit_weight = self.settings.memory_weight, self.settings.edit_weight
        score = torch.zeros_like(original[:, 0], dtype=torch.float32)
        if memory_weight:
            score = score + memory_weight * self._novelty(original)
        if edit_weight:
            score = score + edit_weight * self._cosine(original, edits)
        return score.clamp(min=0)

    def _novelty(self, features: Tensor) -> Tensor:
        """N of features (B, C, h, w): (B, h, w) float32."""
        return memory_distance(features, self.memory, self.settings.neighbours)
