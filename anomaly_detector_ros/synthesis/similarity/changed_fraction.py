"""A kernel that counts the pixels that change, however much they do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Gt
from pydantic import AllowInfNan
from torch import Tensor

from anomaly_detector_ros.synthesis.similarity import SIMILARITIES, Similarity

_Positive = Annotated[float, Gt(0), AllowInfNan(False)]
Ends = tuple[_Positive, _Positive]
"""A value at the noisiest time and one at the clean image."""


@SIMILARITIES.register("changed_fraction")
@dataclass(frozen=True)
class ChangedFractionSimilarity(Similarity):
    """Exponential prior on the soft fraction of changed pixels: log r_sim = -guidance_scale f.

    f is the mean over pixels of 1 - prod_c u(x_c - y_c). The soft rectangle
    u(d) = sigmoid(s (w/2 + d)) sigmoid(s (w/2 - d)) of width w and steepness s tends to 1 for
    |d| < w/2 and to 0 beyond: what counts is how many pixels change, not how much.

    Over the diffusion time w and s go linearly from their first value (noisiest) to their second
    (clean image). The defaults are those of the experiments in the paper's published code;
    ``guidance_scale`` is its scale times its rate: 1e4 for reverse, 6e4 for forward matching.

    Attributes:
        guidance_scale: the rate of the exponential prior; see `Similarity`.
        width, steepness: first and last value, positive; the kernel itself has the last ones.
    """

    width: Ends = (2.0, 0.1)
    steepness: Ends = (0.1, 100.0)

    def at(self, time: float) -> ChangedFractionSimilarity:
        """The kernel with the width and steepness of that time; see `Similarity.at`."""
        width, steepness = _between(self.width, time), _between(self.steepness, time)
        return replace(self, width=(width, width), steepness=(steepness, steepness))

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Similarity.log_prob`."""
        rise, fall = self._edges(x, y)
        changed = 1 - (rise * fall).prod(1)
        return -self.guidance_scale * changed.flatten(1).mean(1)

    def grad(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Similarity.grad`."""
        rise, fall = self._edges(x, y)
        unchanged = (rise * fall).prod(1, keepdim=True)
        # d log u / dx = s (1 - rise) - s (1 - fall)
        scale = self.guidance_scale * self.steepness[1] / x[0, 0].numel()
        return scale * unchanged * (fall - rise)

    def _edges(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The rising and the falling edge of the soft rectangle, each (B, C, H, W) in (0, 1)."""
        half, steepness = self.width[1] / 2, self.steepness[1]
        difference = x - y
        return (
            torch.sigmoid(steepness * (half + difference)),
            torch.sigmoid(steepness * (half - difference)),
        )


def _between(ends: Ends, time: float) -> float:
    first, last = ends
    return last + (first - last) * time
