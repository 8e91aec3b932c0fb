"""What a denoiser is: from a noisy image and its timestep to the clean image behind it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from anomaly_detector_ros.synthesis.schedule import Schedule
from anomaly_detector_ros.synthesis.spaces import space_of


class Denoiser(Protocol):
    """E[x_0 | x_t] under the distribution the model was trained on.

    One that was not trained on pixels has an attribute ``space``; see `spaces.space_of`.
    """

    schedule: Schedule

    def __call__(self, x: Tensor, t: int) -> Tensor:
        """x0_hat(x), not clipped: (B, C, H, W) for x_t of the same shape.

        Args:
            t: the timestep, of all images.
        """
        ...


class OneByOneDenoiser:
    """A denoiser that sees one image at a time, whatever the batch."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser
        self.schedule, self.space = denoiser.schedule, space_of(denoiser)

    def __call__(self, x: Tensor, t: int) -> Tensor:
        """See `Denoiser`."""
        return torch.cat([self._denoiser(image[None], t) for image in x])
