"""A Markov random field as a prior on which pixels change: neighbours rather do so together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from anomaly_detector_ros.synthesis.similarity import SIMILARITIES, Similarity


@SIMILARITIES.register("markov_prior")
@dataclass(frozen=True)
class MarkovPrior(Similarity):
    """log r_sim = guidance_scale (mean of u + coupling (mean over rows + mean over columns)).

    u is 1 where a pixel is as in the input, softly: the product over channels and both edges of
    sigmoid(steepness (width / 2 +- difference)). Two neighbours count u u' + (1 - u)(1 - u'): 1
    where both changed or neither did. The means are over pixels, and over pairs beside and above
    each other.

    Attributes:
        coupling: the weight of pairs against pixels; the published code's by default.
        width: of what passes for the same, in [0, 2]; images lie in [-1, 1].
        steepness: of its edges.
    """

    coupling: Annotated[float, Ge(0)] = 0.47
    width: Annotated[float, Gt(0)] = 0.4
    steepness: Annotated[float, Gt(0)] = 10.0

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Similarity.log_prob`; the gradient is found by automatic differentiation."""
        difference, half = x - y, self.width / 2
        rise = torch.sigmoid(self.steepness * (half + difference))
        fall = torch.sigmoid(self.steepness * (half - difference))
        same = (rise * fall).prod(1)
        beside = _agreement(same[:, :, :-1], same[:, :, 1:])
        above = _agreement(same[:, :-1], same[:, 1:])
        return self.guidance_scale * (same.mean((1, 2)) + self.coupling * (beside + above))


def _agreement(same: Tensor, other: Tensor) -> Tensor:
    return (same * other + (1 - same) * (1 - other)).mean((1, 2))
