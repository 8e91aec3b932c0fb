"""Kernels that take every value alone: the squared and the absolute difference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anomaly_detector_ros.synthesis.similarity import SIMILARITIES, Similarity


@SIMILARITIES.register("gaussian")
@dataclass(frozen=True)
class GaussianSimilarity(Similarity):
    """log r_sim(x, y) = -lambda ||x - y||^2 with lambda = guidance_scale / (C H W).

    ``guidance_scale`` multiplies the mean squared difference over channels and pixels, as in the
    paper's published code.
    """

    def weight(self, x: Tensor) -> float:
        """lambda for images shaped like ``x`` (B, C, H, W)."""
        return self.guidance_scale / x[0].numel()

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Similarity.log_prob`."""
        return -self.weight(x) * (x - y).square().flatten(1).sum(1)

    def grad(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Similarity.grad`."""
        return -2 * self.weight(x) * (x - y)

    def product_mode(self, mean: Tensor, variance: float, y: Tensor) -> Tensor:
        """(mean + 2 lambda v y) / (1 + 2 lambda v): the product is Gaussian, its mode its mean."""
        precision = 2 * self.weight(mean) * variance
        return torch.lerp(mean, y, precision / (1 + precision))


@SIMILARITIES.register("l1")
@dataclass(frozen=True)
class L1Similarity(Similarity):
    """log r_sim(x, y) = -mu ||x - y||_1 with mu = guidance_scale / (C H W).

    Pulls equally hard at small and large differences: what is nearly the input becomes the input,
    and what differs much is held less than under `GaussianSimilarity`.
    """

    def weight(self, x: Tensor) -> float:
        """mu for images shaped like ``x`` (B, C, H, W)."""
        return self.guidance_scale / x[0].numel()

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Similarity.log_prob`."""
        return -self.weight(x) * (x - y).abs().flatten(1).sum(1)

    def grad(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Similarity.grad`; 0 where x = y."""
        return -self.weight(x) * (x - y).sign()

    def product_mode(self, mean: Tensor, variance: float, y: Tensor) -> Tensor:
        """Soft thresholding: a step of mu v towards ``y``, or all the way where that is nearer."""
        step = self.weight(mean) * variance
        return mean - (mean - y).clamp(-step, step)
