"""How new an image is to a memory of nominal features, and how far its edits had to go."""

from __future__ import annotations

import copy
import functools
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
    Taught,
    Tensors,
)
from anomaly_detector_ros.distances.cosine import CosineDistance

# How much higher the score of what was called anomalous is than its novelty. Shipped calibrations
# have 99% of nominal scores within 0.22, half of them below 0.1.
_REJECTED_WEIGHT = 0.25
# By so little directions in 8 bits may be off.
_BYTES = 0.002
# So many vectors are compared with a memory at once.
_CHUNK = 1024


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
        return NoveltyDistance(memory, self, learnt.get("accepted"), learnt.get("rejected"))

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


def spread_out(
    vectors: Tensor, count: int, *, known: Tensor | None = None, apart: float = 0.0
) -> Tensor:
    """Up to ``count`` of the vectors (N, C), such that none of them is far from the nearest one.

    The greedy coreset of Gonzalez (1985) by the angle, as in PatchCore (Roth et al. 2022): each is
    the one farthest from those before it. So rare nominal things are remembered as well as the
    common ones, of which a random draw would hold many alike.

    Args:
        known: directions (M, C) that count as chosen before.
        apart: 1 - cos to all chosen before from which on one is worth choosing.
    """
    if known is None and apart == 0 and count >= len(vectors):
        return vectors
    directions = F.normalize(vectors, dim=1)
    if known is None:
        chosen, nearest = [0], directions @ directions[0]
    else:
        chosen, nearest = [], _nearest(directions, known)
    while len(chosen) < count:
        lowest, farthest = nearest.min(0)
        if apart and 1 - lowest <= apart:
            break
        chosen.append(int(farthest))
        nearest = torch.maximum(nearest, directions @ directions[farthest])
    return vectors[chosen]


def _nearest(directions: Tensor, known: Tensor) -> Tensor:
    """The cosine of each direction (N, C) with the nearest of some others (M, C): (N,)."""
    return torch.cat([(part @ known.T).amax(1) for part in directions.split(_CHUNK)])


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

    What was taught as nominal is a second memory: N is the lower one of both. What was taught as
    anomalous raises N where a place is more like it than like the memories, by at most 0.25: with d
    the distance to the nearest such vector and r the `reach`, by 0.25 max(0, 1 - d / max(N, r)).

    Args:
        memory: m, (M, C) nominal feature vectors of any lengths but 0.
        settings: k, u, w, where edits begin, and the share of a frame's level.
        accepted, rejected: (A, C), (R, C); what was taught as nominal, or as anomalous, for good,
            where lessons were exported with the memory.
    """

    full_resolution = True

    def __init__(
        self,
        memory: Tensor,
        settings: Novelty,
        accepted: Tensor | None = None,
        rejected: Tensor | None = None,
    ) -> None:
        self.memory, self.settings = F.normalize(memory.float(), dim=1), settings
        self.frame_level, self._cosine = settings.frame_level, CosineDistance()
        none = self.memory[:0]
        self._last: tuple[Tensor, Tensor] | None = None
        self._share: tuple[Tensor, Tensor] | None = None
        self.accepted, self.rejected = self._fitted = (
            none if accepted is None else F.normalize(accepted.float(), dim=1),
            none if rejected is None else F.normalize(rejected.float(), dim=1),
        )

    def to(self, device: torch.device | str) -> NoveltyDistance:
        """See `Distance`."""
        moved = copy.copy(self)
        moved._last = moved._share = None
        moved.memory, moved.accepted, moved.rejected = (
            each.to(device) for each in (self.memory, self.accepted, self.rejected)
        )
        moved._fitted = (self._fitted[0].to(device), self._fitted[1].to(device))
        return moved

    def tensors(self) -> dict[str, Tensor]:
        """See `Distance`: directions in 8 bits, which move a distance by less than 0.001.

        What was taught is among them, for good.
        """
        taught = {"accepted": self.accepted, "rejected": self.rejected}
        held = {name: each for name, each in taught.items() if len(each)}
        return {name: in_bytes(each) for name, each in {"memory": self.memory, **held}.items()}

    @functools.cached_property
    def reach(self) -> float:
        """r: what is nearer than this to something known, the memory does not tell from it.

        0.6 of the median distance of its vectors from their nearest neighbours. Where it is less,
        what is taught of other terrain hides more of the anomalies on the old one; see
        docs/teach.md.
        """
        some = self.memory[:: -(-len(self.memory) // 2000)]
        others = some @ self.memory.T
        # Each is its own nearest.
        nearest = others.topk(min(2, len(self.memory)), dim=1).values[:, -1]
        return max(0.6 * float(1 - nearest.median()), _BYTES)

    def unknown(self, vectors: Tensor, most: int) -> Tensor:
        """See `Distance`: a greedy coreset of what lies further than `reach` from all it knows."""
        vectors = vectors.to(self.memory.device).float()
        chosen, apart = vectors[:0], self.reach
        held = torch.cat([self.memory, self.accepted])
        for part in vectors.split(_CHUNK):
            known = torch.cat([held, F.normalize(chosen, dim=1)])
            found = spread_out(part, len(part), known=known, apart=apart)
            chosen = torch.cat([chosen, found])
            while len(chosen) > most:
                # As in the doubling algorithm (Charikar et al. 2004): thinned out, it goes on.
                apart *= 1.1
                chosen = spread_out(chosen, most, known=held, apart=apart)
        return chosen

    def taught(self, lessons: Sequence[Taught]) -> NoveltyDistance:
        """See `Distance`. A later lesson takes back what an earlier one says of the same things."""
        accepted, rejected = self._fitted
        for lesson in lessons:
            vectors = lesson.vectors.to(self.memory.device).float()
            if vectors.ndim != 2 or vectors.shape[1:] != self.memory.shape[1:]:
                raise ValueError(
                    f"features of {vectors.shape[-1]} channels, not those of the memory"
                )
            vectors = F.normalize(vectors, dim=1)
            if lesson.nominal:
                rejected = self._unlike(rejected, vectors)
                # N is a mean over k neighbours.
                copies = self.settings.neighbours if lesson.shown else 1
                accepted = torch.cat([accepted, vectors.repeat(copies, 1)])
            else:
                accepted = self._unlike(accepted, vectors)
                rejected = torch.cat([rejected, vectors])
        changed = copy.copy(self)
        changed.accepted, changed.rejected = accepted, rejected
        changed._last = changed._share = None
        return changed

    def taught_share(self, features: Tensor) -> float:
        """See `Distance`."""
        if not len(self.accepted):
            return 0.0
        if self._share is None or not torch.equal(self._share[0], features):
            self._nominal(features)
        assert self._share is not None  # as something was taught
        return float(self._share[1])

    def _unlike(self, vectors: Tensor, others: Tensor) -> Tensor:
        if not len(vectors) or not len(others):
            return vectors
        return vectors[_nearest(vectors, others) < 1 - self.reach]

    def strength(self, features: Tensor) -> Tensor:
        """See `Distance`: rises from 0 to 1 with N less the frame's level, neighbours included."""
        novelty = self._novelty(features)
        self._last = features, novelty  # the same image's score is asked for next
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
        last, self._last = self._last, None
        if last is not None and torch.equal(last[0], features):
            return last[1]
        novelty = self._nominal(features)
        if len(self.rejected):
            away = memory_distance(features, self.rejected) / novelty.clamp(min=self.reach)
            novelty = novelty + _REJECTED_WEIGHT * (1 - away).clamp(min=0)
        return novelty

    def _nominal(self, features: Tensor) -> Tensor:
        """The lower distance from both memories, (B, h, w); `taught_share` is asked for next."""
        own = memory_distance(features, self.memory, self.settings.neighbours)
        if not len(self.accepted):
            return own
        taught = memory_distance(features, self.accepted, self.settings.neighbours)
        self._share = features, (taught < own).float().mean()
        return torch.minimum(own, taught)


def in_bytes(directions: Tensor) -> Tensor:
    """Directions (N, C) as int8, each as long as fits: cosines change by less than 0.001."""
    largest = directions.abs().amax(1, keepdim=True).clamp(min=1e-12)
    return (directions * (127 / largest)).round().to(torch.int8).cpu()
