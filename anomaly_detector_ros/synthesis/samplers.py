"""Samplers: edits of an input image that are likely under the denoiser's training distribution.

Both draw from (an approximation of) q(x_0) r_sim(x_0, x_in), where q is what the denoiser learned.
Images are float (B, C, H, W) in [-1, 1]; all randomness comes from ``generator``, so a seeded call
repeats bit for bit on the same CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from anomaly_detector_ros.runtime.tensors import to_device
from anomaly_detector_ros.synthesis.denoisers.base import Denoiser
from anomaly_detector_ros.synthesis.guidance import (
    Guidance,
    Jacobian,
    identity_product,
    noisy_product,
    reverse_matching,
    reverse_product,
)
from anomaly_detector_ros.synthesis.schedule import Schedule
from anomaly_detector_ros.synthesis.similarity import Similarity

Matching = Literal["reverse", "mismatched", "forward"]


@dataclass(frozen=True)
class SamplerStep:
    """What a sampler's callback sees after each step.

    Attributes:
        index: steps done before this one.
        timestep: the timestep the step started from.
        x: the sample after the step.
        x0: the denoiser's clean image in this step, clipped; in `few_step` guided, where the
            guidance acts on it.
    """

    index: int
    timestep: int
    x: Tensor
    x0: Tensor


Callback = Callable[[SamplerStep], None]


def normal_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise shaped like ``x``, the same on every device for the same seed."""
    return to_device(torch.randn(x.shape, generator=generator, dtype=x.dtype), x.device)


def diffusion_time(schedule: Schedule, t: int) -> float:
    """Timestep -1 (the clean image) to T - 2 (the noisiest a step leads to) as 0 to 1.

    What a kernel that changes over time is asked for; see `Similarity.at`.
    """
    return (t + 1) / max(1, schedule.num_train_timesteps - 1)


@torch.no_grad()
def algorithm1(
    denoiser: Denoiser,
    x_input: Tensor,
    similarity: Similarity,
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
        kernel = similarity.at(diffusion_time(schedule, t - 1))
        x = mu + variance * guidance(denoiser, kernel, mu, x_input, t - 1)
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
    similarity: Similarity,
    *,
    guidance: Matching = "reverse",
    jacobian: Jacobian = "identity",
    noise_level: float = 0.6,
    steps: int = 8,
    data_std: float = 0.5,
    initial_noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    clip: bool = True,
    callback: Callback | None = None,
) -> Tensor:
    """Deterministic sampling (DDIM, Song et al. 2021) from the noised input, guided in closed form.

    The input is noised to ``noise_level`` once. Reverse matching moves the denoiser's x0_hat in
    each step to the peak of p(x_0 | x_t) r_sim(x_0, x_in) (`guidance.reverse_product`) before the
    DDIM step: for data N(m, s^2 I) the exact probability-flow ODE of q(x_0) r_sim(x_0, x_in).
    Mismatched and forward matching move x_t' after the DDIM step to t' (`guidance.noisy_product`).

    Args:
        guidance: ``reverse``, ``mismatched`` or ``forward`` matching.
        jacobian: how reverse matching takes the Jacobian of x0_hat; ``exact`` adds a backward pass.
        noise_level: where to start, a share of the diffusion angle in (0, 1]; see
            `Schedule.timestep_at`. Higher edits more.
        steps: network passes.
        data_std: s, the standard deviation of the training data about its mean; for reverse
            matching with the identity Jacobian.
        initial_noise: what the input is noised with, drawn from ``generator`` if not given.
        clip: clip x0_hat to [-1, 1].
    """
    schedule = denoiser.schedule
    timesteps = few_step_timesteps(schedule, noise_level, steps)
    noise = normal_like(x_input, generator) if initial_noise is None else initial_noise
    x = schedule.add_noise(x_input, noise, timesteps[0])
    for index, (t, t_next) in enumerate(pairwise([*timesteps, -1])):
        if guidance == "reverse" and jacobian == "exact":
            kernel = similarity.at(diffusion_time(schedule, t_next))
            x0 = reverse_product(
                denoiser, kernel, x, x_input, t, data_std=data_std, jacobian=jacobian, clip=clip
            )
            x = _ddim_step(schedule, x, x0, t, t_next)
        else:
            x0 = denoiser(x, t)
            x0 = x0.clamp(-1, 1) if clip else x0
            kernel = similarity.at(diffusion_time(schedule, t_next))
            if guidance == "reverse":
                x0 = identity_product(schedule, kernel, x0, x_input, t, data_std=data_std)
            x = _ddim_step(schedule, x, x0, t, t_next)
            if guidance != "reverse":
                forward = guidance == "forward"
                x = noisy_product(schedule, kernel, x, x_input, t, t_next, forward=forward)
        if callback:
            callback(SamplerStep(index, t, x, x0))
    return x


def _ddim_step(schedule: Schedule, x: Tensor, x0: Tensor, t: int, t_next: int) -> Tensor:
    """From x_t to x_t' along the noise that x_t holds beside x_0; t' = -1 is the clean image."""
    if t_next < 0:
        return x0
    alpha, sigma = schedule.alpha_sigma(t, x)
    return schedule.add_noise(x0, (x - alpha * x0) / sigma, t_next)
