"""log r_sim(x, y): how strongly an edit x is held to the input y."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GaussianSimilarity:
    """log r_sim(x, y) = -lambda ||x - y||^2 with lambda = guidance_scale / (C H W).

    ``guidance_scale`` multiplies the mean squared difference over channels and pixels of images
    in [-1, 1], as in the paper's published code.
    """

    guidance_scale: float

    def weight(self, x: Tensor) -> float:
        """lambda for images shaped like ``x`` (B, C, H, W)."""
        return self.guidance_scale / x[0].numel()

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        """log r_sim up to a constant, (B,), for images (B, C, H, W) in [-1, 1]."""
        return -self.weight(x) * (x - y).square().flatten(1).sum(1)

    def grad(self, x: Tensor, y: Tensor) -> Tensor:
        """The gradient of `log_prob` in x, (B, C, H, W)."""
        return -2 * self.weight(x) * (x - y)

    def product_mean(self, mean: Tensor, variance: float, y: Tensor) -> Tensor:
        """Mean of the normalised product N(x; mean, variance I) r_sim(x, y), in closed form."""
        precision = 2 * self.weight(mean) * variance
        return torch.lerp(mean, y, precision / (1 + precision))
