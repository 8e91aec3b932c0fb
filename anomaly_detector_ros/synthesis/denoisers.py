"""Denoisers: from a noisy image and its timestep to the clean image behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.synthesis import lucidrains_checkpoint
from anomaly_detector_ros.synthesis.lucidrains import LucidrainsUnet
from anomaly_detector_ros.synthesis.onnx_denoiser import NETWORK, OnnxDenoiser
from anomaly_detector_ros.synthesis.schedule import Schedule


class Denoiser(Protocol):
    """E[x_0 | x_t] under the distribution the model was trained on."""

    schedule: Schedule

    def __call__(self, x: Tensor, t: int) -> Tensor:
        """x0_hat(x), not clipped: (B, C, H, W) for x_t of the same shape at timestep ``t``."""
        ...


class UnetDenoiser:
    """A U-Net with the schedule it was trained on.

    Args:
        unet: already on the device it runs on; images may come from elsewhere and go back there.
        schedule: its noise schedule and prediction type.
        dtype: precision of the network's convolutions and products (autocast); the conversion to
            x0_hat stays in the images' precision.
    """

    def __init__(
        self,
        unet: UNet2DModel | LucidrainsUnet,
        schedule: Schedule,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.unet, self.schedule, self.dtype = unet, schedule, dtype

    def __call__(self, x: Tensor, t: int) -> Tensor:
        """x0_hat(x), not clipped; differentiable in ``x``."""
        device = next(self.unet.parameters()).device
        network_input = x.to(device, torch.float32, memory_format=torch.channels_last)
        timestep = torch.full((len(x),), t, device=device)
        mixed = self.dtype != torch.float32
        with torch.autocast(device.type, self.dtype, enabled=mixed):
            output = self.unet(network_input, timestep).sample
        return self.schedule.predict_x0(x, output.to(x), t)


class DiffusersDenoiser(UnetDenoiser):
    """A `UNet2DModel` of a diffusers model directory."""

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
        return cls(_ready(unet, device), Schedule.from_diffusers(scheduler), dtype)


def load_denoiser(
    directory: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Denoiser:
    """The denoiser of a diffusers model, a converted checkpoint or an export, told by its files.

    Args:
        dtype: precision of the network; an export has the one it was exported with.

    Raises:
        UserError: the directory is missing or holds none of them.
    """
    directory = directory.expanduser()
    if (directory / NETWORK).is_file():
        return OnnxDenoiser.from_directory(directory, device=device)
    if (directory / lucidrains_checkpoint.WEIGHTS).is_file():
        model = lucidrains_checkpoint.load_converted(directory)
        return UnetDenoiser(_ready(model.unet, device), model.schedule, dtype)
    if (directory / "unet").is_dir():
        return DiffusersDenoiser.from_pretrained(directory, device=device, dtype=dtype)
    raise UserError(
        f"cannot load denoiser '{directory}' (neither unet/ nor model.safetensors in it): give a "
        "diffusers model directory or one that `anomaly-detector models convert` wrote"
    )


def _ready(unet: torch.nn.Module, device: torch.device | str) -> torch.nn.Module:
    """For inference: float32, no gradients of the weights, the faster memory layout."""
    unet = unet.float().eval().requires_grad_(False)
    return unet.to(device, memory_format=torch.channels_last)
