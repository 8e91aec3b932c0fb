"""Samplers: edits of an input image that are likely under the denoiser's training distribution.

Both draw from (an approximation of) q(x_0) r_sim(x_0, x_in), where q is what the denoiser learned.
Images are float (B, C, H, W) in [-1, 1]; all randomness comes from ``generator``, so a seeded call
repeats bit for bit on the same CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from anomaly_detector_ros.synthesis.denoisers import Denoiser
from anomaly_detector_ros.synthesis.guidance import Guidance, reverse_matching
from anomaly_detector_ros.synthesis.schedule import Schedule
from anomaly_detector_ros.synthesis.similarity import GaussianSimilarity


@dataclass(frozen=True)
class SamplerStep:
    """What a sampler's callback sees after each step.

    Attributes:
        index: steps done before this one.
        timestep: the timestep the step started from.
        x: the sample after the step.
        x0: the denoiser's clean image in this step, clipped.
    """

    index: int
    timestep: int
    x: Tensor
    x0: Tensor


Callback = Callable[[SamplerStep], None]


def normal_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise shaped like ``x``, the same on every device for the same seed."""
    return torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)


@torch.no_grad()
def algorithm1(
    denoiser: Denoiser,
    x_input: Tensor,
    similarity: GaussianSimilarity,
    *,
    guidance: Guidance = reverse_matching,
    initial_noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    clip: bool = True,
    callback: Callback | None = None,
) -> Tensor:
    """Algorithm 1 of the paper: guided ancestral sampling over all training timesteps.

    x_t ~ mu + sigma^2 g + sigma z with mu = E[x_t | x_{t+1}], sigma^2 the posterior variance
    beta~_{t+1} and g the guidance gradient at mu, time t; no noise in the last step.

    Args:
        guidance: one of `synthesis.guidance`.
        initial_noise: x_T, drawn from ``generator`` if not given.
        clip: clip x0_hat to [-1, 1] for the mean (never inside the guidance).
    """
    schedule = denoiser.schedule
    x = normal_like(x_input, generator) if initial_noise is None else initial_noise
    last = schedule.num_train_timesteps - 1
    for t in range(last, -1, -1):
        x0 = denoiser(x, t)
        x0 = x0.clamp(-1, 1) if clip else x0
        mu, variance = schedule.posterior(x0, x, t)
        x = mu + variance * guidance(denoiser, similarity, mu, x_input, t - 1)
        if t > 0:
            x = x + variance**0.5 * normal_like(x, generator)
        if callback:
            callback(SamplerStep(last - t, t, x, x0))
    return x


def few_step_timesteps(schedule: Schedule, noise_level: float, steps: int) -> list[int]:
    """Timesteps from ``noise_level`` down, equal in diffusion angle, without repeats.

    See `Schedule.timestep_at`; the last step leads from the last timestep to the clean image.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    levels = [noise_level * (steps - i) / steps for i in range(steps)]
    return sorted({schedule.timestep_at(level) for level in levels}, reverse=True)


@torch.no_grad()
def few_step(
    denoiser: Denoiser,
    x_input: Tensor,
    similarity: GaussianSimilarity,
    *,
    noise_level: float = 0.6,
    steps: int = 8,
    data_std: float = 0.5,
    initial_noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    clip: bool = True,
    callback: Callback | None = None,
) -> Tensor:
    """Deterministic sampling (DDIM, Song et al. 2021) from the noised input, guided in closed form.

    The input is noised to ``noise_level`` once. In each step the denoiser's x0_hat is the mean of
    p(x_0 | x_t); were that N(x0_hat, v I), its product with r_sim(., x_in) would have the mean

        x0 = (x0_hat + 2 lambda v x_in) / (1 + 2 lambda v),   v = 1 / (1 / s^2 + abar / (1 - abar)),

    which replaces x0_hat in the DDIM step. For data N(m, s^2 I) this is the exact probability-flow
    ODE of q(x_0) r_sim(x_0, x_in): reverse matching without network passes of its own.

    Args:
        noise_level: where to start, a share of the diffusion angle in (0, 1]; see
            `Schedule.timestep_at`. Higher edits more.
        steps: network passes.
        data_std: s, the standard deviation of the training data about its mean.
        initial_noise: what the input is noised with, drawn from ``generator`` if not given.
        clip: clip x0_hat to [-1, 1].
    """
    schedule = denoiser.schedule
    timesteps = few_step_timesteps(schedule, noise_level, steps)
    noise = normal_like(x_input, generator) if initial_noise is None else initial_noise
    x = schedule.add_noise(x_input, noise, timesteps[0])
    for index, t in enumerate(timesteps):
        alpha, sigma = schedule.alpha_sigma(t, x)
        x0 = denoiser(x, t)
        x0 = x0.clamp(-1, 1) if clip else x0
        abar = float(schedule.alphas_cumprod[t])
        posterior_variance = 1 / (1 / data_std**2 + abar / (1 - abar))
        x0 = similarity.product_mean(x0, posterior_variance, x_input)
        if index + 1 == len(timesteps):
            x = x0
        else:
            x = schedule.add_noise(x0, (x - alpha * x0) / sigma, timesteps[index + 1])
        if callback:
            callback(SamplerStep(index, t, x, x0))
    return x
