"""K edits of every image, as a profile's sampler makes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from anomaly_detector_ros.runtime.tensors import to_device
from anomaly_detector_ros.synthesis.denoisers.base import Denoiser
from anomaly_detector_ros.synthesis.editing import make_sampler
from anomaly_detector_ros.synthesis.schedule import Timesteps


class Editor:
    """A sampler and the noise that it starts from.

    Every image gets the same noise: what stands still in a video is edited alike.

    Args:
        settings: a profile's sampler: those of `editing.make_sampler`, ``num_edits`` (K, 1 by
            default) and ``seed`` (0).
        size: H and W of the images.
        device: where they are.

    Raises:
        UserError: see `editing.make_sampler`.
    """

    def __init__(
        self, settings: Mapping[str, Any], size: tuple[int, int], device: torch.device
    ) -> None:
        self.settings, self.size, self.device = settings, size, device
        self._sampler = make_sampler(settings)
        self._noise: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()  # not inference_mode: the exact Jacobian differentiates inside
    def edit(self, denoiser: Denoiser, inputs: Tensor) -> Tensor:
        """Edits (B, K, 3, H, W) of inputs (B, 3, H, W), both in [-1, 1], in one batch.

        Raises:
            RuntimeError: the denoiser returned values that are not finite.
        """
        noise, generator = self._initial_noise()
        watched = _Watched(denoiser)
        edits = self._sampler(
            watched,
            inputs.repeat_interleave(len(noise), 0),
            initial_noise=noise.repeat(len(inputs), 1, 1, 1),
            generator=generator,
        )
        if not (watched.finite & torch.isfinite(edits).all()):
            raise RuntimeError("the denoiser returned values that are not finite")
        return edits.clamp(-1, 1).unflatten(0, (len(inputs), len(noise)))

    def _initial_noise(self) -> tuple[Tensor, torch.Generator]:
        """The noise (K, 3, H, W), made once, and the generator of whatever follows it."""
        generator = torch.Generator().manual_seed(int(self.settings.get("seed", 0)))
        if self._noise is None:
            shape = (int(self.settings.get("num_edits", 1)), 3, *self.size)
            noise = torch.randn(shape, generator=generator)
            self._noise = to_device(noise, self.device), generator.get_state()
        noise, state = self._noise
        generator.set_state(state)
        return noise, generator


class _Watched:
    """A denoiser that notes whether all its values were finite: clipped, infinity looks like one.

    Attributes:
        finite: bool (), on the images' device, where nothing has to wait for it.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser, self.schedule = denoiser, denoiser.schedule
        self.finite = torch.tensor(True)

    def __call__(self, x: Tensor, t: Timesteps) -> Tensor:
        x0 = self._denoiser(x, t)
        self.finite = torch.isfinite(x0.detach()).all() & self.finite.to(x0.device)
        return x0
