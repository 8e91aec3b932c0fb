"""U-Nets as denoisers."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor, nn

from anomaly_detector_ros.errors import as_user_error
from anomaly_detector_ros.runtime.inference import precision, ready, split_attention
from anomaly_detector_ros.synthesis.denoisers.compiled import accelerate
from anomaly_detector_ros.synthesis.denoisers.inpainting import InpaintingUnet, inpainting_input
from anomaly_detector_ros.synthesis.schedule import Schedule
from anomaly_detector_ros.synthesis.spaces import PIXELS, LatentSpace, Space


class UnetDenoiser:
    """A U-Net with the schedule it was trained on.

    Args:
        unet: a `UNet2DModel`, an `InpaintingUnet` or a `LucidrainsUnet`, already on the device it
            runs on; images may come from elsewhere and go back there.
        schedule: its noise schedule and prediction type.
        dtype: precision of the network's convolutions and products (autocast); the conversion to
            x0_hat stays in the images' precision.
        compile: how the network is called; see `compiled.accelerate`.
        space: the one that the network was trained in.

    Raises:
        UserError: unknown ``compile``.
    """

    def __init__(
        self,
        unet: nn.Module,
        schedule: Schedule,
        dtype: torch.dtype = torch.float32,
        compile: str = "none",
        space: Space = PIXELS,
    ) -> None:
        self.unet, self.schedule, self.dtype, self.space = unet, schedule, dtype, space
        self._network = accelerate(self._predict, compile, self.device)
        self._forms: dict[str, UnetDenoiser] = {}

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.unet.parameters()).device

    def __call__(self, x: Tensor, t: int) -> Tensor:
        """x0_hat(x), not clipped; differentiable in ``x``. See `Denoiser`."""
        return self._predict_x0(x, x, t)

    def fill_in(self, x: Tensor, t: int, known: Tensor, hidden: Tensor) -> Tensor:
        """See `base.fill_in`."""
        if not isinstance(self.unet, InpaintingUnet):
            return self(x, t)
        return self._predict_x0(x, inpainting_input(x, known, hidden), t)

    def _predict_x0(self, x: Tensor, network_input: Tensor, t: int) -> Tensor:
        images = network_input.to(self.device, torch.float32, memory_format=torch.channels_last)
        output = self._network(images, torch.full((len(x),), t, device=images.device))
        return self.schedule.predict_x0(x, output.to(x), t)

    def compiled(self, mode: str) -> UnetDenoiser:
        """A denoiser with the same network, called in the way that ``mode`` names.

        The same one for the same mode: what is recorded or compiled is shared.
        """
        if mode not in self._forms:
            form = UnetDenoiser(self.unet, self.schedule, self.dtype, mode, self.space)
            self._forms[mode] = form
        return self._forms[mode]

    def _predict(self, images: Tensor, timesteps: Tensor) -> Tensor:
        with precision(images.device, self.dtype):
            output: Tensor = self.unet(images, timesteps).sample
        return output


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

        With ``vae/`` beside them the U-Net is one of that autoencoder's latents.

        Raises:
            UserError: the directory is missing or is not a model of that kind.
        """
        with as_user_error(
            f"cannot load denoiser '{directory}'",
            "give a diffusers model directory with unet/ and scheduler/",
        ):
            unet = UNet2DModel.from_pretrained(
                directory, subfolder="unet", use_safetensors=True, local_files_only=True
            )
            scheduler = DDPMScheduler.from_pretrained(
                directory, subfolder="scheduler", local_files_only=True
            )
            schedule = Schedule.from_diffusers(scheduler)
        space: Space = PIXELS
        if (directory / "vae").is_dir():
            space = LatentSpace.from_pretrained(directory, device=device, dtype=dtype)
        network = InpaintingUnet(unet) if InpaintingUnet.is_one(unet) else unet
        if split_attention(device, dtype):
            for module in unet.modules():
                if isinstance(module, Attention):
                    module.set_processor(AttnProcessor())
        return cls(ready(network, device, dtype), schedule, dtype, space=space)
