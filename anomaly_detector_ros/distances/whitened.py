"""Mahalanobis distance of the features of image and edits, whitened by nominal differences."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt, Le
from torch import Tensor

from anomaly_detector_ros.distances.base import (
    DISTANCES,
    Distance,
    DistanceSettings,
    NominalImages,
    Tensors,
)
from anomaly_detector_ros.errors import UserError


@DISTANCES.register("whitened")
@dataclass(frozen=True)
class Whitened(DistanceSettings):
    """Settings of the whitened distance.

    Attributes:
        shrinkage: s; the covariance is (1 - s) S + s (trace S / C) I (Ledoit & Wolf 2004), which
            keeps directions without variance from dividing by nothing.
    """

    fitted = True
    collects_edits = True

    shrinkage: Annotated[float, Gt(0), Le(1)] = 0.01

    def build(self, learnt: Tensors) -> WhitenedDistance:
        """See `DistanceSettings`."""
        mean, factor = learnt["mean"], learnt["factor"]
        if mean.ndim != 1 or factor.shape != (len(mean), len(mean)):
            raise ValueError("its whitening is not square")
        return WhitenedDistance(mean, factor)

    def collect(self, images: NominalImages, sets: int) -> Tensors:
        """See `DistanceSettings`: the sums that mean and covariance are made of."""
        seen = NominalDifferences()
        images.compare(seen)
        return seen.tensors()

    def fit(self, collected: Sequence[Tensors]) -> WhitenedDistance:
        """See `DistanceSettings`.

        Raises:
            UserError: nothing was seen, or the edits never differed from the images.
        """
        seen = [each for each in collected if each]
        if not seen:
            raise UserError("distance whitened: no nominal image was compared: give some")
        # One after the other: torch's own sum over many may add in another order.
        count, total, products = (
            functools.reduce(torch.add, (each[name] for each in seen))
            for name in ("count", "sum", "products")
        )
        mean = total / count
        covariance = products / count - torch.outer(mean, mean)
        level = float(covariance.diagonal().mean())
        if not level > 0:
            raise UserError(
                "distance whitened: edits and images do not differ: check denoiser and sampler"
            )
        identity = torch.eye(len(mean), dtype=torch.float64)
        shrunk = (1 - self.shrinkage) * covariance + self.shrinkage * level * identity
        lower = torch.linalg.cholesky(shrunk)
        factor = torch.linalg.solve_triangular(lower, identity, upper=False)
        return WhitenedDistance(mean.float(), factor.float())


class WhitenedDistance(Distance):
    """Mahalanobis distance of the difference of features from what it is on nominal images.

    With a the features of the image and b_k those of its K edits, d = a - mean_k b_k, and m and S
    mean and covariance of d over nominal images:

        sqrt((d - m)^T S^-1 (d - m) / C)

    Nominal pixels lie around 1. What every edit changes alike, such as fine texture, counts for
    little; a change that nominal images don't know counts for much.

    Args:
        mean: m, (C,) float32.
        factor: W, (C, C) float32, with W^T W = S^-1.
    """

    def __init__(self, mean: Tensor, factor: Tensor) -> None:
        self.mean, self.factor = mean, factor

    def to(self, device: torch.device | str) -> WhitenedDistance:
        """See `Distance`."""
        return WhitenedDistance(self.mean.to(device), self.factor.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """See `Distance`."""
        return {"mean": self.mean, "factor": self.factor}

    def __call__(self, original: Tensor, edits: Tensor) -> Tensor:
        """See `Distance`: the map of the mean of the edits, then, of several, one per edit."""
        compared = edits.float()
        if len(edits) > 1:
            compared = torch.cat([compared.mean(0, keepdim=True), compared])
        differences = original.float() - compared - self.mean[:, None, None]
        whitened = torch.einsum("ij,bjhw->bihw", self.factor, differences)
        return whitened.square().mean(1).sqrt()

    def anomaly(self, maps: Tensor) -> Tensor:
        """See `Distance`."""
        return maps[0]

    def spread(self, maps: Tensor) -> Tensor:
        """See `Distance`."""
        return super().spread(maps[1:] if len(maps) > 1 else maps)


class NominalDifferences(Distance):
    """A distance, the length of a - mean_k b_k, that remembers mean and covariance of what it sees.

    It stands in for the whitened distance while that is fitted, so that it sees the very features
    that will be compared, whatever the upsampler makes of them.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | float = 0.0
        self._products: Tensor | float = 0.0

    def __call__(self, original: Tensor, edits: Tensor) -> Tensor:
        """See `Distance`: one map."""
        difference = (original.float() - edits.float().mean(0, keepdim=True))[0]
        vectors = difference.flatten(1).cpu().double()
        self.count += vectors.shape[1]
        self._sum = self._sum + vectors.sum(1)
        self._products = self._products + vectors @ vectors.T
        length: Tensor = difference.norm(dim=0)
        return length[None]

    def tensors(self) -> dict[str, Tensor]:
        """Count, sum (C,) and sum of products (C, C) of the differences, float64; empty of none."""
        if not isinstance(self._sum, Tensor) or not isinstance(self._products, Tensor):
            return {}
        count = torch.tensor(self.count, dtype=torch.float64)
        return {"count": count, "sum": self._sum, "products": self._products}
