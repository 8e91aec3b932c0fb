"""Deterministic sampling in a few steps from the noised input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from pydantic import AllowInfNan
from torch import Tensor

from anomaly_detector_ros.synthesis.denoisers.base import Denoiser
from anomaly_detector_ros.synthesis.samplers import SAMPLERS, StepwiseSampler
from anomaly_detector_ros.synthesis.samplers.ddim import ddim_step
from anomaly_detector_ros.synthesis.schedule import Schedule
from anomaly_detector_ros.synthesis.similarity import Similarity


@SAMPLERS.register("few_step")
@dataclass(frozen=True)
class FewStep(StepwiseSampler):
    """DDIM (Song et al. 2021) from the noised input, guided in closed form.

    The input is noised to ``noise_level`` once. In each step the guidance may move the denoiser's
    x0_hat before the DDIM step (`Guidance.clean`) or x_t' after it (`Guidance.arrive`). With
    reverse matching and data N(m, s^2 I) that is the exact probability-flow ODE of
    q(x_0) r_sim(x_0, x_in).

    Attributes:
        steps: network passes.
        data_std: s, the standard deviation of the training data about its mean; for reverse
            matching with the identity Jacobian.
    """

    noise_level: Annotated[float, Gt(0), Le(1)] = 0.6
    steps: Annotated[int, Ge(1)] = 8
    data_std: Annotated[float, Gt(0), AllowInfNan(False)] = 0.5

    def starts(self, schedule: Schedule) -> list[int]:
        """See `StepwiseSampler`."""
        return few_step_timesteps(schedule, self.noise_level, self.steps)

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
        x0 = self.guidance.clean(
            denoiser, kernel, x, x_input, t, data_std=self.data_std, clip=self.clip
        )
        x = ddim_step(denoiser.schedule, x, x0, t, t_next)
        return self.guidance.arrive(denoiser.schedule, kernel, x, x_input, t, t_next), x0


def few_step_timesteps(schedule: Schedule, noise_level: float, steps: int) -> list[int]:
    """Timesteps from ``noise_level`` down, equal in diffusion angle, without repeats.

    See `Schedule.timestep_at`; the last step leads from the last timestep to the clean image.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    levels = [noise_level * (steps - i) / steps for i in range(steps)]
    return sorted({schedule.timestep_at(level) for level in levels}, reverse=True)
