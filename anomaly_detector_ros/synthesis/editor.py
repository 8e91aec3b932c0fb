"""K edits of every image, as a profile's sampler makes them, one by one, in batches or streamed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from anomaly_detector_ros.runtime.tensors import to_device
from anomaly_detector_ros.synthesis.denoisers.base import Denoiser
from anomaly_detector_ros.synthesis.editing import checked, make_sampler
from anomaly_detector_ros.synthesis.stream import StreamEditor


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
        edits = self._sampler(
            denoiser,
            inputs.repeat_interleave(len(noise), 0),
            initial_noise=noise.repeat(len(inputs), 1, 1, 1),
            generator=generator,
        )
        return checked(edits).unflatten(0, (len(inputs), len(noise)))

    def stream(self, denoiser: Denoiser) -> StreamEditor:
        """What makes the same edits of consecutive images; see `StreamEditor.from_settings`."""
        return StreamEditor.from_settings(denoiser, self.settings, self._initial_noise()[0])

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
