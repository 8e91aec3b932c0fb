"""Algorithm 1 of the paper: guided ancestral sampling over all training timesteps."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
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
from anomaly_detector_ros.synthesis.similarity import Similarity
from anomaly_detector_ros.synthesis.similarity.norms import GaussianSimilarity


@SAMPLERS.register("algorithm1")
@dataclass(frozen=True)
class Algorithm1(Sampler):
    """x_t ~ mu + sigma^2 g + sigma z, from pure noise down to the clean image.

    mu = E[x_t | x_{t+1}], sigma^2 is the posterior variance beta~_{t+1} and g the guidance's
    gradient at mu, time t. The last step adds no noise. Clipping is for the mean, never inside the
    guidance.
    """

    guidance: Guidance = field(default_factory=Reverse)
    similarity: Similarity = field(default_factory=GaussianSimilarity)

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
        """See `Sampler`; ``initial_noise`` is x_T."""
        schedule = denoiser.schedule
        x = normal_like(x_input, generator) if initial_noise is None else initial_noise
        last = schedule.num_train_timesteps - 1
        for t in range(last, -1, -1):
            x0 = denoiser(x, t)
            x0 = x0.clamp(-1, 1) if self.clip else x0
            mu, variance = schedule.posterior(x0, x, t)
            kernel = self.similarity.at(diffusion_time(schedule, t - 1))
            x = mu + variance * self.guidance.gradient(denoiser, kernel, mu, x_input, t - 1)
            if t > 0:
                x = x + variance**0.5 * normal_like(x, generator)
            if callback:
                callback(SamplerStep(last - t, t, x, x0))
        return x
