"""Deterministic sampling in a few steps from the noised input."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from pydantic import AllowInfNan
from torch import Tensor

from anomaly_detector_ros.synthesis.denoisers.base import Denoiser
from anomaly_detector_ros.synthesis.guidance import Guidance
from anomaly_detector_ros.synthesis.guidance.reverse import Reverse
from anomaly_detector_ros.synthesis.samplers import (
    SAMPLERS,
    Callback,
    Sampler,
    SamplerStep,
    diffusion_time,
    normal_like,
)
from anomaly_detector_ros.synthesis.schedule import Schedule
from anomaly_detector_ros.synthesis.similarity import Similarity
from anomaly_detector_ros.synthesis.similarity.norms import GaussianSimilarity


@SAMPLERS.register("few_step")
@dataclass(frozen=True)
class FewStep(Sampler):
    """DDIM (Song et al. 2021) from the noised input, guided in closed form.

    The input is noised to ``noise_level`` once. In each step the guidance may move the denoiser's
    x0_hat before the DDIM step (`Guidance.clean`) or x_t' after it (`Guidance.arrive`). With
    reverse matching and data N(m, s^2 I) that is the exact probability-flow ODE of
    q(x_0) r_sim(x_0, x_in).

    Attributes:
        noise_level: where to start, a share of the diffusion angle in (0, 1]; see
            `Schedule.timestep_at`. Higher edits more.
        steps: network passes.
        data_std: s, the standard deviation of the training data about its mean; for reverse
            matching with the identity Jacobian.
    """

    guidance: Guidance = field(default_factory=Reverse)
    similarity: Similarity = field(default_factory=GaussianSimilarity)
    noise_level: Annotated[float, Gt(0), Le(1)] = 0.6
    steps: Annotated[int, Ge(1)] = 8
    data_std: Annotated[float, Gt(0), AllowInfNan(False)] = 0.5

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        x_input: Tensor,
        *,
        initial_noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """See `Sampler`; ``initial_noise`` is what the input is noised with."""
        schedule = denoiser.schedule
        timesteps = few_step_timesteps(schedule, self.noise_level, self.steps)
        noise = normal_like(x_input, generator) if initial_noise is None else initial_noise
        x = schedule.add_noise(x_input, noise, timesteps[0])
        for index, (t, t_next) in enumerate(pairwise([*timesteps, -1])):
            kernel = self.similarity.at(diffusion_time(schedule, t_next))
            x0 = self.guidance.clean(
                denoiser, kernel, x, x_input, t, data_std=self.data_std, clip=self.clip
            )
            x = _ddim_step(schedule, x, x0, t, t_next)
            x = self.guidance.arrive(schedule, kernel, x, x_input, t, t_next)
            if callback:
                callback(SamplerStep(index, t, x, x0))
        return x


def few_step_timesteps(schedule: Schedule, noise_level: float, steps: int) -> list[int]:
    """Timesteps from ``noise_level`` down, equal in diffusion angle, without repeats.

    See `Schedule.timestep_at`; the last step leads from the last timestep to the clean image.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    levels = [noise_level * (steps - i) / steps for i in range(steps)]
    return sorted({schedule.timestep_at(level) for level in levels}, reverse=True)


def _ddim_step(schedule: Schedule, x: Tensor, x0: Tensor, t: int, t_next: int) -> Tensor:
    """From x_t to x_t' along the noise that x_t holds beside x_0; t' = -1 is the clean image."""
    if t_next < 0:
        return x0
    alpha, sigma = schedule.alpha_sigma(t, x)
    return schedule.add_noise(x0, (x - alpha * x0) / sigma, t_next)
