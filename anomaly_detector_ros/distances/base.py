"""How far the features of an image are from those of its edits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_detector_ros.errors import UserError

# The settings of each distance and what they are where a profile does not say.
_SETTINGS: dict[str, dict[str, float]] = {
    "cosine": {},
    "whitened": {"shrinkage": 0.01},
    "novelty": {"memory": 8000, "edit_weight": 0.25},
}
# What a setting's value must be, and the same in words.
_VALID: dict[str, tuple[Callable[[float], bool], str]] = {
    "shrinkage": (lambda v: 0 < v <= 1, "more than 0, at most 1"),
    "memory": (lambda v: 1 <= v <= 200_000 and v == int(v), "a whole number from 1 to 200000"),
    "edit_weight": (lambda v: 0 <= v <= 10, "0 to 10"),
}


class Distance(Protocol):
    """Compares features, then sums up what an upsampler made of the comparisons.

    Attributes:
        full_resolution: whether the image is seen as the camera gave it, or as small as its edits,
            so that detail that only the image has does not count as a change.
    """

    full_resolution: bool

    def __call__(self, original: Tensor, edits: Tensor) -> Tensor:
        """Features (1, C, h, w) and (K, C, h, w) -> M maps (M, h, w) float32, to be enlarged."""

    def anomaly(self, maps: Tensor) -> Tensor:
        """The M maps at any size (M, H, W) -> one distance a pixel (H, W), at least 0."""

    def spread(self, maps: Tensor) -> Tensor:
        """The M maps (M, H, W) -> standard deviation of the edits' distances (H, W), 0 for one."""


class CosineDistance:
    """1 - cosine similarity of image and edit, averaged over the edits: 0 to 2."""

    full_resolution = False

    def __call__(self, original: Tensor, edits: Tensor) -> Tensor:
        """See `Distance`: one map per edit."""
        return cosine_distance(original.expand_as(edits), edits)

    def anomaly(self, maps: Tensor) -> Tensor:
        """See `Distance`."""
        return maps.mean(0)

    def spread(self, maps: Tensor) -> Tensor:
        """See `Distance`."""
        return spread_of(maps)


class WhitenedDistance:
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

    full_resolution = False

    def __init__(self, mean: Tensor, factor: Tensor) -> None:
        self.mean, self.factor = mean, factor

    def to(self, device: torch.device | str) -> WhitenedDistance:
        """The same on another device."""
        return WhitenedDistance(self.mean.to(device), self.factor.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """For a file."""
        return {"mean": self.mean, "factor": self.factor}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> WhitenedDistance:
        """As `tensors` gave them.

        Raises:
            ValueError: another shape.
        """
        channels = len(tensors["mean"])
        if tensors["factor"].shape != (channels, channels):
            raise ValueError("its whitening is not square")
        return cls(tensors["mean"], tensors["factor"])

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
        return spread_of(maps[1:] if len(maps) > 1 else maps)


class NominalDifferences:
    """A distance, the length of a - mean_k b_k, that remembers mean and covariance of what it sees.

    It stands in for the whitened distance while that is fitted, so that it sees the very features
    that will be compared, whatever the upsampler makes of them.
    """

    full_resolution = False

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
        return difference.norm(dim=0)[None]

    def anomaly(self, maps: Tensor) -> Tensor:
        """See `Distance`."""
        return maps[0]

    def spread(self, maps: Tensor) -> Tensor:
        """See `Distance`; not kept apart."""
        return torch.zeros_like(maps[0])

    def whitened(self, shrinkage: float) -> WhitenedDistance:
        """The whitened distance that these differences define.

        Args:
            shrinkage: s in (0, 1]; the covariance is (1 - s) S + s (trace S / C) I (Ledoit & Wolf
                2004), which keeps directions without variance from dividing by nothing.

        Raises:
            UserError: nothing was seen, or the edits never differed from the images.
        """
        if not isinstance(self._sum, Tensor) or not isinstance(self._products, Tensor):
            raise UserError("distance whitened: no nominal image was compared: give some")
        mean = self._sum / self.count
        covariance = self._products / self.count - torch.outer(mean, mean)
        level = float(covariance.diagonal().mean())
        if not level > 0:
            raise UserError(
                "distance whitened: edits and images do not differ: check denoiser and sampler"
            )
        identity = torch.eye(len(mean), dtype=torch.float64)
        shrunk = (1 - shrinkage) * covariance + shrinkage * level * identity
        lower = torch.linalg.cholesky(shrunk)
        factor = torch.linalg.solve_triangular(lower, identity, upper=False)
        return WhitenedDistance(mean.float(), factor.float())


def spread_of(maps: Tensor) -> Tensor:
    """Standard deviation over the first dimension."""
    # Tensor.std takes some 40 times as long over two maps.
    return (maps - maps.mean(0)).square_().mean(0).sqrt_()


def merged(parts: Iterable[NominalDifferences]) -> NominalDifferences:
    """What one would remember that had seen all that the parts have."""
    result = NominalDifferences()
    for part in parts:
        result.count += part.count
        result._sum = result._sum + part._sum
        result._products = result._products + part._products
    return result


def distance_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A profile's section ``distance`` with what it leaves out.

    >>> distance_settings({"name": "whitened"})
    {'name': 'whitened', 'shrinkage': 0.01}

    Raises:
        UserError: unknown name or setting, or a value out of range.
    """
    name = settings.get("name")
    if name not in _SETTINGS:
        raise UserError(f"distance {name!r}: unknown: take one of {', '.join(_SETTINGS)}")
    known = _SETTINGS[name]
    unknown = sorted(set(settings) - {"name", *known})
    if unknown:
        raise UserError(
            f"distance {name}: unknown setting {unknown[0]}: take {', '.join(known) or 'none'}"
        )
    complete = {key: settings.get(key, default) for key, default in known.items()}
    for key, value in complete.items():
        valid, wanted = _VALID[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not valid(value):
            raise UserError(f"distance {name}: {key} {value!r}: take {wanted}")
    return {"name": name, **complete}


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - cosine similarity of feature maps (B, C, h, w): (B, h, w) float32 in [0, 2].

    0 for the same direction, 1 for orthogonal features, 2 for opposite ones. A zero vector is
    at distance 1 from everything.
    """
    # Rounding makes the similarity of equal vectors slightly more than 1.
    return (1.0 - F.cosine_similarity(a.float(), b.float(), dim=1)).clamp_(0.0, 2.0)
