"""Algorithm 1 of the paper: guided ancestral sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from anomaly_detector_ros.synthesis.denoisers.base import Denoiser
from anomaly_detector_ros.synthesis.samplers import (
    SAMPLERS,
    StepwiseSampler,
    evenly_spaced,
    normal_like,
)
from anomaly_detector_ros.synthesis.schedule import Schedule
from anomaly_detector_ros.synthesis.similarity import Similarity


@SAMPLERS.register("algorithm1")
@dataclass(frozen=True)
class Algorithm1(StepwiseSampler):
    """x_t' ~ mu + sigma^2 g + sigma z, from pure noise or the noised input to the clean image.

    mu and sigma^2 are mean and variance of q(x_t' | x_t, x0_hat), t' the next timestep, and g the
    guidance's gradient at mu, time t'. The last step adds no noise. Clipping is for the mean, never
    inside the guidance. The paper's has the defaults: all timesteps, from pure noise.

    Attributes:
        timesteps: how many timesteps, equally far apart, to step over (Nichol & Dhariwal 2021,
            section 4); all that there are by default. See `evenly_spaced`.
    """

    timesteps: Annotated[int, Ge(1)] | None = None

    def starts(self, schedule: Schedule) -> list[int]:
        """See `StepwiseSampler`."""
        return evenly_spaced(schedule.timestep_at(self.noise_level), self.timesteps)

    def step(
        self,
        denoiser: Denoiser,
        kernel: Similarity,
        x: Tensor,
        x_input: Tensor,
        t: int,
        t_next: int,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """See `StepwiseSampler`."""
        x0 = denoiser(x, t)
        x0 = x0.clamp(-1, 1) if self.clip else x0
        mu, variance = denoiser.schedule.posterior(x0, x, t, t_next)
        x = mu + variance * self.guidance.gradient(denoiser, kernel, mu, x_input, t_next)
        if t_next >= 0:
            x = x + variance**0.5 * normal_like(x, generator)
        return x, x0
