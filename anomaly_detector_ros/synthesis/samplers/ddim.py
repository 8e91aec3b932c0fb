"""DDIM, its noise estimate moved by the guidance's gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le
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


@SAMPLERS.register("ddim")
@dataclass(frozen=True)
class Ddim(StepwiseSampler):
    """Guided DDIM (Dhariwal & Nichol 2021, Algorithm 2): eps - sigma_t g in the place of eps.

    g is the guidance's gradient at x_t. The steps are explicit: where they are long and little is
    left of the signal (few timesteps from noise alone), a gradient without the network's Jacobian
    overshoots. Then start below noise_level 1, or take `few_step.FewStep`, which goes in closed
    form. The paper's published code multiplies g by sigma of the next timestep and leaves the last
    step unguided.

    Attributes:
        timesteps: how many timesteps, equally far apart, to step over; see `evenly_spaced`.
        eta: share of the noise of ancestral sampling that each step draws anew: 0 is deterministic,
            1 samples like Algorithm 1.
    """

    timesteps: Annotated[int, Ge(1)] = 250
    eta: Annotated[float, Ge(0), Le(1)] = 0.0

    def starts(self, schedule: Schedule) -> list[int]:
        """See `StepwiseSampler`.

        The last timestep, which holds hardly any signal, is left out: x_0 cannot be told from it,
        and g is divided by its share of the signal.
        """
        last = max(0, schedule.num_train_timesteps - 2)
        return evenly_spaced(min(schedule.timestep_at(self.noise_level), last), self.timesteps)

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
        schedule = denoiser.schedule
        alpha, sigma = schedule.alpha_sigma(t, x)
        gradient = self.guidance.gradient(denoiser, kernel, x, x_input, t)
        x0 = denoiser(x, t) + sigma**2 / alpha * gradient
        x0 = x0.clamp(-1, 1) if self.clip else x0
        return ddim_step(schedule, x, x0, t, t_next, self.eta, generator), x0


def ddim_step(
    schedule: Schedule,
    x: Tensor,
    x0: Tensor,
    t: int,
    t_next: int,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """From x_t to x_t' along the noise that x_t holds beside x_0; t' = -1 is the clean image.

    Song et al. 2021, eq. 12. With eta = 1 its law is that of `Schedule.posterior`.
    """
    if t_next < 0:
        return x0
    alpha, sigma = schedule.alpha_sigma(t, x)
    noise = (x - alpha * x0) / sigma
    if eta == 0:
        return schedule.add_noise(x0, noise, t_next)
    abar = float(schedule.alphas_cumprod[t_next])
    variance = eta**2 * schedule.posterior(x0, x, t, t_next)[1]
    kept = math.sqrt(1 - abar - variance) * noise
    return math.sqrt(abar) * x0 + kept + math.sqrt(variance) * normal_like(x, generator)
