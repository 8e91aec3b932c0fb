"""Edits that begin at another noise level in every place."""

from __future__ import annotations

import torch
from torch import Tensor

from anomaly_detector_ros.synthesis.denoisers.base import Denoiser, fill_in
from anomaly_detector_ros.synthesis.spaces import space_of


class LocalDenoiser:
    """A denoiser that knows the input wherever an edit is not to begin yet.

    x0_hat is the denoiser's own where the strength is at least the noise fraction of x_t
    (`Schedule.noise_fraction`), and the input elsewhere; so what is not edited follows the input's
    own noisy path, with any sampler, and ends as the input. Levin & Fried 2023, "Differential
    Diffusion: Giving Each Pixel Its Strength"; here a denoiser that was trained to fill in is told
    what is known, too.

    Args:
        denoiser: of the edits.
        known: the input, (B, C, h, w).
        strength: (B, 1, h, w) in [0, 1]: 0 leaves a place as it is, 1 makes it anew.

    Attributes:
        edited: bool (B, 1, h, w), where an edit has begun.
    """

    def __init__(self, denoiser: Denoiser, known: Tensor, strength: Tensor) -> None:
        self._denoiser, self._known, self._strength = denoiser, known, strength
        self.schedule, self.space = denoiser.schedule, space_of(denoiser)
        self.edited = torch.zeros_like(strength, dtype=torch.bool)
        self._highest = float(strength.max())  # once: a GPU has to be waited for

    def __call__(self, x: Tensor, t: int) -> Tensor:
        """See `Denoiser`; while no place is edited the network is not asked."""
        level = self.schedule.noise_fraction(t)
        if level > self._highest:
            return self._known
        open_here = self._strength >= level
        self.edited = self.edited | open_here
        x0 = fill_in(self._denoiser, x, t, self._known, open_here.to(x))
        return x0.where(open_here, self._known)
