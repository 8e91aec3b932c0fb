"""Annealed Langevin steps (Song & Ermon 2019) after every step of Algorithm 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from anomaly_detector_ros.synthesis.denoisers.base import Denoiser
from anomaly_detector_ros.synthesis.samplers import SAMPLERS, normal_like
from anomaly_detector_ros.synthesis.samplers.algorithm1 import Algorithm1
from anomaly_detector_ros.synthesis.similarity import Similarity


@SAMPLERS.register("langevin")
@dataclass(frozen=True)
class Langevin(Algorithm1):
    """x + b s + sqrt(2 b) z, with s the guided score of x_t and b = beta_t, as often as asked.

    The score is (sqrt(abar) x0_hat - x) / (1 - abar) + g. The steps leave the guided x_t's law as
    it is, but for their length, and mend what the step before got wrong of it.

    Attributes:
        corrections: Langevin steps after each step, each one or two passes of the network.
    """

    corrections: Annotated[int, Ge(0)] = 2

    def correct(
        self,
        denoiser: Denoiser,
        kernel: Similarity,
        x: Tensor,
        x_input: Tensor,
        t: int,
        generator: torch.Generator | None,
    ) -> Tensor:
        """See `StepwiseSampler`; the clean image stays as it is."""
        if t < 0:
            return x
        alpha, sigma = denoiser.schedule.alpha_sigma(t, x)
        length = float(denoiser.schedule.betas[t])
        for _ in range(self.corrections):
            score = (alpha * denoiser(x, t) - x) / sigma**2
            score = score + self.guidance.gradient(denoiser, kernel, x, x_input, t)
            x = x + length * score + (2 * length) ** 0.5 * normal_like(x, generator)
        return x
