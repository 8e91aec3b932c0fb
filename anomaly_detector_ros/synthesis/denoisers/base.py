"""What a denoiser is: from a noisy image and its timestep to the clean image behind it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from anomaly_detector_ros.synthesis.schedule import Schedule, Timesteps


class Denoiser(Protocol):
    """E[x_0 | x_t] under the distribution the model was trained on."""

    schedule: Schedule

    def __call__(self, x: Tensor, t: Timesteps) -> Tensor:
        """x0_hat(x), not clipped: (B, C, H, W) for x_t of the same shape.

        Args:
            t: the timestep of all images, or int64 (B,), that of each.
        """
        ...


class OneByOneDenoiser:
    """A denoiser that sees one image at a time, whatever the batch."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser
        self.schedule = denoiser.schedule

    def __call__(self, x: Tensor, t: Timesteps) -> Tensor:
        """See `Denoiser`."""
        each = t if isinstance(t, Tensor) and t.ndim else [t] * len(x)
        singles = zip(x.split(1), each, strict=True)
        return torch.cat([self._denoiser(image, _of_one(t)) for image, t in singles])


def _of_one(t: Timesteps) -> Timesteps:
    return t.reshape(1) if isinstance(t, Tensor) else t
