"""Similarity kernels, log r_sim(x, y): how strongly an edit x is held to the input y.

Images are float (B, C, H, W) in [-1, 1]. Each kernel is ``-guidance_scale`` times a mean over the
image, so that a scale means the same at every resolution.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor


class Similarity(Protocol):
    """A kernel: its value, its gradient and its product with a Gaussian."""

    def at(self, time: float) -> Similarity:
        """The kernel at a share of the diffusion time: 1 is the noisiest, 0 the clean image."""
        ...

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        """log r_sim up to a constant, (B,), for images (B, C, H, W)."""
        ...

    def grad(self, x: Tensor, y: Tensor) -> Tensor:
        """The gradient of `log_prob` in x, (B, C, H, W)."""
        ...

    def product_mode(self, mean: Tensor, variance: float, y: Tensor) -> Tensor:
        """The most likely x under N(x; mean, variance I) r_sim(x, y), (B, C, H, W).

        In each pixel it lies between ``mean`` and ``y``, whatever the scale and the variance.
        """
        ...


@dataclass(frozen=True)
class GaussianSimilarity:
    """log r_sim(x, y) = -lambda ||x - y||^2 with lambda = guidance_scale / (C H W).

    ``guidance_scale`` multiplies the mean squared difference over channels and pixels of images
    in [-1, 1], as in the paper's published code.
    """

    guidance_scale: float

    def at(self, time: float) -> GaussianSimilarity:
        """The same kernel at every time."""
        return self

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


@dataclass(frozen=True)
class L1Similarity:
    """log r_sim(x, y) = -mu ||x - y||_1 with mu = guidance_scale / (C H W).

    Pulls equally hard at small and large differences: what is nearly the input becomes the input,
    and what differs much is held less than under `GaussianSimilarity`.
    """

    guidance_scale: float

    def at(self, time: float) -> L1Similarity:
        """The same kernel at every time."""
        return self

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


@dataclass(frozen=True)
class ChangedFractionSimilarity:
    """Exponential prior on the soft fraction of changed pixels: log r_sim = -guidance_scale f.

    f is the mean over pixels of 1 - prod_c u(x_c - y_c). The soft rectangle
    u(d) = sigmoid(s (w/2 + d)) sigmoid(s (w/2 - d)) of width w and steepness s tends to 1 for
    |d| < w/2 and to 0 beyond: what counts is how many pixels change, not how much.

    Over the diffusion time w and s go linearly from their first value (noisiest) to their second
    (clean image). The defaults are those of the experiments in the paper's published code;
    ``guidance_scale`` is its scale times its rate: 1e4 for reverse, 6e4 for forward matching.

    Attributes:
        guidance_scale: the rate of the exponential prior.
        width, steepness: first and last value, positive.
        time: where between the two, 1 for the first and 0 for the last value.
    """

    guidance_scale: float
    width: tuple[float, float] = (2.0, 0.1)
    steepness: tuple[float, float] = (0.1, 100.0)
    time: float = 0.0

    def at(self, time: float) -> ChangedFractionSimilarity:
        """The kernel with the width and steepness of that time; see `Similarity.at`."""
        return replace(self, time=time)

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
        steepness = _between(self.steepness, self.time)
        scale = self.guidance_scale * steepness / x[0, 0].numel()
        return scale * unchanged * (fall - rise)

    def product_mode(self, mean: Tensor, variance: float, y: Tensor) -> Tensor:
        """No closed form: a gradient step from ``mean``, damped so that it never passes ``y``.

        With d = |y - mean| and the step v g it goes v g d / (d + |v g|): the exact mode of the
        quadratic kernel about ``y`` that has the gradient g at ``mean``.
        """
        step = variance * self.grad(mean, y)
        distance = (y - mean).abs()
        total = (distance + step.abs()).clamp_min(torch.finfo(mean.dtype).tiny)
        return mean + step * (distance / total)

    def _edges(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The rising and the falling edge of the soft rectangle, each (B, C, H, W) in (0, 1)."""
        steepness = _between(self.steepness, self.time)
        half = _between(self.width, self.time) / 2
        difference = x - y
        return (
            torch.sigmoid(steepness * (half + difference)),
            torch.sigmoid(steepness * (half - difference)),
        )


def _between(ends: tuple[float, float], time: float) -> float:
    first, last = ends
    return last + (first - last) * time
