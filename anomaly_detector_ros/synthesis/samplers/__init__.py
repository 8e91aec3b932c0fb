"""Samplers: edits of an input that are likely under the denoiser's training distribution.

All draw from (an approximation of) q(x_0) r_sim(x_0, x_in), where q is what the denoiser learned
and r_sim the similarity to the input. They know nothing of the space that they sample in, images
or latents: samples are float (B, C, H, W). A sampler is a frozen dataclass in a file of its own,
registered in `SAMPLERS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated

import torch
from annotated_types import Gt, Le
from torch import Tensor

from anomaly_detector_ros.runtime.parts import PartRegistry
from anomaly_detector_ros.runtime.tensors import to_device
from anomaly_detector_ros.synthesis.denoisers.base import Denoiser
from anomaly_detector_ros.synthesis.guidance import Guidance
from anomaly_detector_ros.synthesis.guidance.reverse import Reverse
from anomaly_detector_ros.synthesis.schedule import Schedule
from anomaly_detector_ros.synthesis.similarity import Similarity
from anomaly_detector_ros.synthesis.similarity.norms import GaussianSimilarity


@dataclass(frozen=True)
class SamplerStep:
    """What a sampler's callback sees after each step.

    Attributes:
        index: steps done before this one.
        count: steps in all.
        timestep: the timestep the step started from.
        before: the sample before the step.
        x: the sample after the step.
        x0: the clean image in this step, clipped if the sampler clips; guided, where the guidance
            acts on it.
    """

    index: int
    count: int
    timestep: int
    before: Tensor
    x: Tensor
    x0: Tensor


Callback = Callable[[SamplerStep], None]


@dataclass(frozen=True)
class Sampler(ABC):
    """Edits inputs so that they become likely under what the denoiser was trained on.

    Fields called ``guidance`` and ``similarity`` hold parts of those kinds, with a class as their
    default factory; a profile sets theirs beside the sampler's own.

    Attributes:
        clip: clip x0_hat to [-1, 1], where images lie; `Editor` turns it off for other spaces.
    """

    clip: bool = field(default=True, kw_only=True)

    @abstractmethod
    def __call__(
        self,
        denoiser: Denoiser,
        x_input: Tensor,
        *,
        initial_noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Edits of ``x_input``, both (B, C, H, W).

        Args:
            initial_noise: what sampling starts from, like ``x_input``; drawn from ``generator`` if
                not given.
            generator: all randomness comes from it, so that a seeded call repeats bit for bit on
                the same CPU.
            callback: called after every step.
        """


SAMPLERS: PartRegistry[Sampler] = PartRegistry("sampler", __name__)


@dataclass(frozen=True)
class StepwiseSampler(Sampler):
    """Goes down from a noisy sample to the clean image, step by step.

    Attributes:
        guidance: how the kernel steers the steps.
        similarity: the kernel that holds the edit to the input.
        noise_level: where to start, a share of the diffusion angle in (0, 1]; see
            `Schedule.timestep_at`. 1 starts from noise alone, less from the noised input. Higher
            edits more.
    """

    guidance: Guidance = field(default_factory=Reverse)
    similarity: Similarity = field(default_factory=GaussianSimilarity)
    noise_level: Annotated[float, Gt(0), Le(1)] = 1.0

    @abstractmethod
    def starts(self, schedule: Schedule) -> list[int]:
        """The timesteps that steps start from, falling; the last step leads to the clean image."""

    @abstractmethod
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
        """One step from x_t: the sample at ``t_next`` (-1: the clean image), and the step's x_0.

        Args:
            kernel: the similarity at the time of ``t_next``.
        """

    def correct(
        self,
        denoiser: Denoiser,
        kernel: Similarity,
        x: Tensor,
        x_input: Tensor,
        t: int,
        generator: torch.Generator | None,
    ) -> Tensor:
        """What a step led to at timestep ``t``, made better before the next one; here as it is.

        For samplers that add to another one: Langevin steps, constraints.
        """
        return x

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
        """See `Sampler`; ``initial_noise`` is x_T, or what the input is noised with."""
        schedule = denoiser.schedule
        starts = self.starts(schedule)
        x = normal_like(x_input, generator) if initial_noise is None else initial_noise
        if self.noise_level < 1:
            x = schedule.add_noise(x_input, x, starts[0])
        for index, (t, t_next) in enumerate(pairwise([*starts, -1])):
            before, kernel = x, self.similarity.at(diffusion_time(schedule, t_next))
            x, x0 = self.step(denoiser, kernel, x, x_input, t, t_next, generator)
            x = self.correct(denoiser, kernel, x, x_input, t_next, generator)
            if callback:
                callback(SamplerStep(index, len(starts), t, before, x, x0))
        return x


def normal_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise shaped like ``x``, the same on every device for the same seed."""
    return to_device(torch.randn(x.shape, generator=generator, dtype=x.dtype), x.device)


def diffusion_time(schedule: Schedule, t: int) -> float:
    """Timestep -1 (the clean image) to T - 2 (the noisiest a step leads to) as 0 to 1.

    What a kernel that changes over time is asked for; see `Similarity.at`.
    """
    return (t + 1) / max(1, schedule.num_train_timesteps - 1)


def evenly_spaced(last: int, count: int | None) -> list[int]:
    """``count`` timesteps from ``last`` down, equally far apart; all of them if None or too many.

    The distance from the lowest one to the clean image (-1) is the same: of 1000 timesteps, 250
    are 999, 995, ... 3.
    """
    steps = last + 1
    count = steps if count is None else min(count, steps)
    return [steps * i // count - 1 for i in range(count, 0, -1)]
