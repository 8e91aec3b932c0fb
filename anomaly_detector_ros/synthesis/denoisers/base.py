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


def fill_in(denoiser: Denoiser, x: Tensor, t: int, known: Tensor, hidden: Tensor) -> Tensor:
    """x0_hat(x), given what is known of x_0 where it is not hidden.

    A denoiser that was not trained for it does not look at that.

    Args:
        x: x_t, (B, C, H, W).
        t: the timestep, of all images.
        known: x_0, (B, C, H, W).
        hidden: (B, 1, H, W), 1 where ``known`` is not to be seen, 0 elsewhere.
    """
    own = getattr(denoiser, "fill_in", None)
    found: Tensor = own(x, t, known, hidden) if own else denoiser(x, t)
    return found


class OneByOneDenoiser:
    """A denoiser that sees one image at a time, whatever the batch."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser
        self.schedule, self.space = denoiser.schedule, space_of(denoiser)

    def __call__(self, x: Tensor, t: int) -> Tensor:
        """See `Denoiser`."""
        return torch.cat([self._denoiser(image[None], t) for image in x])

    def fill_in(self, x: Tensor, t: int, known: Tensor, hidden: Tensor) -> Tensor:
        """See `fill_in`."""
        each = zip(x.split(1), known.split(1), hidden.split(1), strict=True)
        return torch.cat([fill_in(self._denoiser, a, t, b, c) for a, b, c in each])
