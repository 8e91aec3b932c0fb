"""Similarity kernels, log r_sim(x, y): how strongly an edit x is held to the input y.

A kernel is a frozen dataclass in a file of its own, registered in `SIMILARITIES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from pydantic import AllowInfNan
from torch import Tensor

from anomaly_detector_ros.runtime.parts import PartRegistry


@dataclass(frozen=True)
class Similarity(ABC):
    """A kernel: its value, its gradient and its product with a Gaussian, for float (B, C, H, W).

    The value is enough; a gradient and a product in closed form are faster.

    Attributes:
        guidance_scale: multiplies a mean over the image, so that a scale means the same at every
            resolution; 0 holds the edit to nothing.
    """

    guidance_scale: Annotated[float, Ge(0), AllowInfNan(False)] = 0.0

    def at(self, time: float) -> Similarity:
        """The kernel at a share of the diffusion time: 1 is the noisiest, 0 the clean image."""
        return self

    @abstractmethod
    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        """log r_sim up to a constant, (B,)."""

    def grad(self, x: Tensor, y: Tensor) -> Tensor:
        """The gradient of `log_prob` in x, (B, C, H, W); by automatic differentiation."""
        with torch.enable_grad():
            point = x.detach().requires_grad_(True)
            gradient: Tensor = torch.autograd.grad(self.log_prob(point, y).sum(), point)[0]
        return gradient

    def product_mode(self, mean: Tensor, variance: float, y: Tensor) -> Tensor:
        """The most likely x under N(x; mean, variance I) r_sim(x, y), (B, C, H, W).

        In each value it lies between ``mean`` and ``y``, whatever the scale and the variance.

        Where a kernel has no closed form: a gradient step from ``mean``, damped so that it never
        passes ``y``. With d = |y - mean| and the step v g it goes v g d / (d + |v g|): the exact
        mode of the quadratic kernel about ``y`` that has the gradient g at ``mean``.
        """
        step = variance * self.grad(mean, y)
        distance = (y - mean).abs()
        total = (distance + step.abs()).clamp_min(torch.finfo(mean.dtype).tiny)
        return mean + step * (distance / total)


SIMILARITIES: PartRegistry[Similarity] = PartRegistry("similarity", __name__)
