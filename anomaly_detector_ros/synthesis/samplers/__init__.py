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

import torch
from torch import Tensor

from anomaly_detector_ros.runtime.parts import PartRegistry
from anomaly_detector_ros.runtime.tensors import to_device
from anomaly_detector_ros.synthesis.denoisers.base import Denoiser
from anomaly_detector_ros.synthesis.schedule import Schedule


@dataclass(frozen=True)
class SamplerStep:
    """What a sampler's callback sees after each step.

    Attributes:
        index: steps done before this one.
        timestep: the timestep the step started from.
        x: the sample after the step.
        x0: the clean image in this step, clipped if the sampler clips; guided, where the guidance
            acts on it.
    """

    index: int
    timestep: int
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


def normal_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise shaped like ``x``, the same on every device for the same seed."""
    return to_device(torch.randn(x.shape, generator=generator, dtype=x.dtype), x.device)


def diffusion_time(schedule: Schedule, t: int) -> float:
    """Timestep -1 (the clean image) to T - 2 (the noisiest a step leads to) as 0 to 1.

    What a kernel that changes over time is asked for; see `Similarity.at`.
    """
    return (t + 1) / max(1, schedule.num_train_timesteps - 1)
