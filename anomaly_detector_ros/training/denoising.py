"""Denoising diffusion models (Ho et al. 2020) of pixels, and of an autoencoder's latents.

A model directory is a diffusers pipeline's: ``unet/``, ``scheduler/``, ``model_index.json``, and of
latents ``vae/`` as well.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMPipeline, UNet2DModel
from torch import Tensor, nn

from anomaly_detector_ros.synthesis.denoisers.inpainting import InpaintingUnet, inpainting_input
from anomaly_detector_ros.synthesis.denoisers.unet import DiffusersDenoiser
from anomaly_detector_ros.synthesis.schedule import Schedule
from anomaly_detector_ros.synthesis.spaces import PIXELS, LatentSpace, Space
from anomaly_detector_ros.training.config import TrainingConfig, build_latent_unet, build_unet
from anomaly_detector_ros.training.dataset import TrainingImages
from anomaly_detector_ros.training.measures import draw_samples, make_grid, validation_losses
from anomaly_detector_ros.training.stage import Stage, half_in_another_light
from anomaly_detector_ros.weights.loading import is_path
from anomaly_detector_ros.weights.registry import Registry

_MODEL_INDEX = {
    "_class_name": "DiffusionPipeline",
    "scheduler": ["diffusers", "DDPMScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
    "vae": ["anomaly_detector_ros.synthesis.autoencoder", "Autoencoder"],
}
_UNCROPPED = 0.4
_ALL_HIDDEN, _BOXES = 0.4, 0.3
_MOST_BOXES = 6


class PixelStage(Stage):
    """A denoiser of pixels."""

    space: Space = PIXELS
    betas = (0.9, 0.999)
    """Of the optimiser."""

    def __init__(
        self,
        config: TrainingConfig,
        images: TrainingImages,
        validation: TrainingImages | None,
        accelerator: Accelerator,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(config, images, validation, accelerator, dtype)
        self.schedule = Schedule.named(config.beta_schedule)
        self.unet = self._build()
        self.network = self._network()
        self.optimizer = torch.optim.AdamW(
            self.unet.parameters(), lr=config.learning_rate, betas=self.betas
        )

    def _build(self) -> UNet2DModel:
        return build_unet(self.config)

    def _network(self) -> nn.Module:
        network: nn.Module = self.unet
        return network

    def loss(self, network: nn.Module, rng: np.random.Generator, done: float) -> Tensor:
        """See `Stage`: the mean squared error of v."""
        x0 = self._points(rng)
        noise = torch.randn_like(x0)
        t = torch.from_numpy(rng.integers(self.schedule.num_train_timesteps, size=len(x0)))
        x = self.schedule.add_noise(x0, noise, t)
        target = self.schedule.training_target(x0, noise, t)
        device = self.accelerator.device
        x = x.to(device, memory_format=torch.channels_last)
        predicted = network(self._input(x, x0), t.to(device)).sample.float()
        loss: Tensor = (predicted - target.to(device)).square().mean()
        return loss

    def _points(self, rng: np.random.Generator) -> Tensor:
        """x_0 of a batch."""
        return self.batches.batch(self.config.batch_size, rng)

    def _input(self, x: Tensor, x0: Tensor) -> Tensor:
        """What the network sees of x_t, ``x``, and of x_0."""
        return x

    def measure(self) -> tuple[dict[str, float], np.ndarray]:
        """See `Stage`: losses by noise level, and pictures from noise alone."""
        denoiser = DiffusersDenoiser(self.network, self.schedule, self.dtype, space=self.space)
        seed, size = self.config.seed, self.config.size
        losses = validation_losses(denoiser, self.validation, seed) if self.validation else {}
        return losses, make_grid(draw_samples(denoiser, 8, size, seed), columns=4)

    def write(self, directory: Path) -> None:
        """See `Stage`."""
        write_pipeline(self.unet, self.schedule, directory)


class LatentStage(PixelStage):
    """A denoiser of an autoencoder's latents, which fills in what is hidden.

    Half of the images are in another light, and four tenths are seen whole.
    """

    space: LatentSpace
    betas = (0.9, 0.99)

    def __init__(
        self,
        config: TrainingConfig,
        images: TrainingImages,
        validation: TrainingImages | None,
        accelerator: Accelerator,
        dtype: torch.dtype,
    ) -> None:
        model = config.autoencoder
        self._folder = Path(model) if is_path(model) else Registry.default().path(model)
        self.space = LatentSpace.from_pretrained(
            self._folder, device=accelerator.device, dtype=dtype
        )
        super().__init__(config, images, validation, accelerator, dtype)

    def _build(self) -> UNet2DModel:
        return build_latent_unet(self.config, self.space.autoencoder.config.latent_channels)

    def _network(self) -> nn.Module:
        return InpaintingUnet(self.unet)

    @torch.no_grad()
    def _points(self, rng: np.random.Generator) -> Tensor:
        pictures = self.batches.batch(self.config.batch_size, rng, uncropped=_UNCROPPED)
        return self.space.encode(half_in_another_light(pictures.to(self.accelerator.device), rng))

    def _input(self, x: Tensor, x0: Tensor) -> Tensor:
        return inpainting_input(x, x0, random_masks(len(x0), (x0.shape[2], x0.shape[3]), x0.device))

    def write(self, directory: Path) -> None:
        """See `Stage`."""
        # The file, not the network, which may have been rounded to the precision it runs in.
        shutil.copytree(self._folder / "vae", directory / "vae")
        copy.deepcopy(self.unet).half().save_pretrained(directory / "unet")
        self.schedule.to_diffusers().save_pretrained(directory / "scheduler")
        (directory / "model_index.json").write_text(json.dumps(_MODEL_INDEX, indent=2) + "\n")


def write_pipeline(unet: UNet2DModel, schedule: Schedule, directory: Path) -> None:
    """Writes a `DDPMPipeline` of pixels in half precision."""
    pipeline = DDPMPipeline(copy.deepcopy(unet).half(), schedule.to_diffusers())
    pipeline.save_pretrained(directory)


def random_masks(count: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """What a denoiser must fill in, 1 where hidden, else 0: float (count, 1, H, W).

    In four of ten all of it, in three some rectangles, in three smooth blobs. Drawn by torch's
    global generator.
    """

    def draw(low: float, high: float) -> Tensor:
        return torch.empty((count, 1, 1, 1), device=device).uniform_(low, high)

    coarse = [torch.randn((count, 1, *shape), device=device) for shape in ((5, 8), (10, 18))]
    smooth = [F.interpolate(each, size, mode="bicubic") for each in coarse]
    blobs = (smooth[0] + 0.5 * smooth[1] > draw(-0.8, 1.8)).float()
    rows = torch.arange(size[0], device=device).reshape(1, 1, -1, 1)
    columns = torch.arange(size[1], device=device).reshape(1, 1, 1, -1)
    boxes = torch.zeros_like(blobs)
    for index in range(_MOST_BOXES):
        # From two latents to about two thirds of each side, small ones as often as large ones.
        high, wide = (draw(math.log(2), math.log(max(3, 0.62 * side))).exp() for side in size)
        inside = ((rows - draw(0, size[0])).abs() < high / 2) & (
            (columns - draw(0, size[1])).abs() < wide / 2
        )
        there = draw(0, 1) < (1 if index == 0 else 0.45)
        boxes = torch.maximum(boxes, (inside & there).float())
    kind = draw(0, 1)
    some = torch.where(kind < _ALL_HIDDEN + _BOXES, boxes, blobs)
    return torch.where(kind < _ALL_HIDDEN, 1.0, some)
