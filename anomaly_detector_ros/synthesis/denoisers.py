"""Denoisers: from a noisy image and its timestep to the clean image behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.synthesis.schedule import Schedule


class Denoiser(Protocol):
    """E[x_0 | x_t] under the distribution the model was trained on."""

    schedule: Schedule

    def __call__(self, x: Tensor, t: int) -> Tensor:
        """x0_hat(x), not clipped: (B, C, H, W) for x_t of the same shape at timestep ``t``."""
        ...


class DiffusersDenoiser:
    """A `UNet2DModel` with the schedule it was trained on.

    Args:
        unet: already on the device it runs on; images may come from elsewhere and go back there.
        schedule: its noise schedule and prediction type.
        dtype: precision of the network's convolutions and products (autocast); the conversion to
            x0_hat stays in the images' precision.
    """

    def __init__(
        self, unet: UNet2DModel, schedule: Schedule, dtype: torch.dtype = torch.float32
    ) -> None:
        self.unet, self.schedule, self.dtype = unet, schedule, dtype

    @classmethod
    def from_pretrained(
        cls,
        directory: Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> DiffusersDenoiser:
        """Reads ``unet/`` and ``scheduler/`` as `DDPMPipeline.save_pretrained` writes them.

        Raises:
            UserError: the directory is missing or is not a model of that kind.
        """
        try:
            unet = UNet2DModel.from_pretrained(
                directory, subfolder="unet", use_safetensors=True, local_files_only=True
            )
            scheduler = DDPMScheduler.from_pretrained(
                directory, subfolder="scheduler", local_files_only=True
            )
        except Exception as error:  # diffusers raises many kinds, all meaning the same to a user
            raise UserError(
                f"cannot load denoiser '{directory}' ({one_line(error, 200)}): "
                "give a diffusers model directory with unet/ and scheduler/"
            ) from error
        unet = unet.float().eval().requires_grad_(False)
        unet = unet.to(device, memory_format=torch.channels_last)
        return cls(unet, Schedule.from_diffusers(scheduler), dtype)

    def __call__(self, x: Tensor, t: int) -> Tensor:
        """x0_hat(x), not clipped; differentiable in ``x``."""
        device = self.unet.device
        network_input = x.to(device, torch.float32, memory_format=torch.channels_last)
        timestep = torch.full((len(x),), t, device=device)
        mixed = self.dtype != torch.float32
        with torch.autocast(device.type, self.dtype, enabled=mixed):
            output = self.unet(network_input, timestep).sample
        return self.schedule.predict_x0(x, output.to(x), t)
