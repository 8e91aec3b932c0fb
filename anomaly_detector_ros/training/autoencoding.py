"""The autoencoder whose latents a denoiser works on.

Its model directory holds ``vae/`` alone; `denoising.LatentStage` adds the rest.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.runtime.tensors import to_pictures, to_tensor
from anomaly_detector_ros.synthesis.autoencoder import FACTOR, Autoencoder
from anomaly_detector_ros.synthesis.spaces import LatentSpace
from anomaly_detector_ros.training.config import TrainingConfig, build_autoencoder
from anomaly_detector_ros.training.dataset import TrainingImages
from anomaly_detector_ros.training.losses import (
    PatchFeatures,
    adversary_loss,
    gradients,
    judge_loss,
    patch_judge,
    reconstruction_loss,
)
from anomaly_detector_ros.training.measures import make_grid
from anomaly_detector_ros.training.stage import Stage, half_in_another_light

LATENT_NOISE = 0.1
"""Added to the latents in training: those that a denoiser makes are off a little."""

JUDGE_FROM, ADVERSARY_FROM, ADVERSARY_WHOLE = 0.3, 0.35, 0.45
"""Shares of the steps: the judge learns, its word begins to count, and counts in full."""

MIN_SIDE = 32
"""Of a crop, in pixels: texture is compared over 8x8 cells at a quarter of the resolution."""

_JUDGE_RATE = 2e-4
_STATISTICS_BATCHES = 16
_MEASURED, _SHOWN = 32, 4


class AutoencoderStage(Stage):
    """Crops in the camera's own resolution, half of them in another light, come back alike."""

    network: Autoencoder

    def __init__(
        self,
        config: TrainingConfig,
        images: TrainingImages,
        validation: TrainingImages | None,
        accelerator: Accelerator,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(config, images, validation, accelerator, dtype)
        if min(config.size) < MIN_SIDE:
            raise UserError(
                f"size {config.size[0]}x{config.size[1]} is too small for an autoencoder: give "
                f"{MIN_SIDE}x{MIN_SIDE} at least"
            )
        height, width = (
            max(MIN_SIDE, round(side * config.min_crop) // FACTOR * FACTOR) for side in config.size
        )
        self.crop = (height, width)
        device = accelerator.device
        self.network = build_autoencoder(config)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=config.learning_rate, betas=(0.9, 0.99)
        )
        self.features = PatchFeatures.fetched().to(device)
        judge = patch_judge().to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(judge.parameters(), lr=_JUDGE_RATE, betas=(0.5, 0.9))
        self._judge, self._judge_optimizer = accelerator.prepare(judge, optimizer)
        self._to_judge: tuple[Tensor, Tensor] | None = None

    def loss(self, network: nn.Module, rng: np.random.Generator, done: float) -> Tensor:
        """See `Stage`: see `losses`; an adversary for the last two thirds."""
        pictures = self._crops(rng)
        with self.accelerator.autocast():
            given = network(pictures, LATENT_NOISE).float()
            with torch.no_grad():
                wanted = self.features(pictures)
            found = self.features(given)
        loss = reconstruction_loss(given, pictures, found, wanted)
        if done >= ADVERSARY_FROM:
            judge = self.accelerator.unwrap_model(self._judge).requires_grad_(False)
            with self.accelerator.autocast():
                verdict = judge(given).float()
            judge.requires_grad_(True)
            share = min(1, (done - ADVERSARY_FROM) / (ADVERSARY_WHOLE - ADVERSARY_FROM))
            last = self.accelerator.unwrap_model(network).decoder[-2].weight
            loss = loss + share * adversary_loss(verdict, loss, last)
        self._to_judge = (pictures, given.detach()) if done >= JUDGE_FROM else None
        return loss

    def after_step(self) -> None:
        """See `Stage`: the judge's own step on the same pictures."""
        if self._to_judge is None:
            return
        real, made = self._to_judge
        with self.accelerator.autocast():
            verdicts = self._judge(torch.cat([real, made])).float()
        loss = judge_loss(*verdicts.split(len(real)))
        self.accelerator.backward(loss)
        self._judge_optimizer.step()
        self._judge_optimizer.zero_grad(set_to_none=True)

    def _crops(self, rng: np.random.Generator) -> Tensor:
        """Crops that nothing was resized for, half mirrored, half in another light."""
        height, width = self.crop
        crops = []
        for index in rng.integers(len(self.images), size=self.config.batch_size):
            image = self.images.whole(index)
            top, left = (
                rng.integers(side - of + 1)
                for side, of in zip(image.shape[:2], self.crop, strict=True)
            )
            crop = image[top : top + height, left : left + width]
            crops.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
        pictures = to_tensor(np.stack(crops), self.accelerator.device)
        return half_in_another_light(pictures, rng).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def settle(self) -> None:
        """Measures mean and deviation of the averaged encoder's latents, for its last layer."""
        norm: Any = self.network.encoder[-1]
        momentum = norm.momentum
        norm.reset_running_stats()
        norm.momentum = None  # a plain average of all batches
        norm.train()
        rng = np.random.default_rng(self.config.seed)
        for _ in range(_STATISTICS_BATCHES):
            with self.accelerator.autocast():
                self.network.encode(self._crops(rng))
        norm.momentum = momentum
        norm.eval()

    @torch.no_grad()
    def measure(self) -> tuple[dict[str, float], np.ndarray]:
        """See `Stage`: of held-out images PSNR in dB, the features' mean cosine distance and the
        share of gradients that is kept; some of them with their reconstructions below.
        """
        images = self.validation or self.images
        space, rows, pairs = LatentSpace(self.network, self.dtype), [], []
        for index in images.spread(_MEASURED):
            picture = to_tensor(images.whole(index)[None]).to(self.accelerator.device)
            given = space.decode(space.encode(picture)).clamp(-1, 1)
            pairs.append(torch.cat([picture, given]))
            found, wanted = self.features(given)[-1], self.features(picture)[-1]
            kept, there = (
                sum(each.abs().mean() for each in gradients(of.mean(1))) for of in (given, picture)
            )
            psnr = -10 * ((given - picture) / 2).square().mean().log10()
            cosine = 1 - F.cosine_similarity(found, wanted, dim=1).mean()
            rows.append(torch.stack([psnr, cosine, torch.as_tensor(kept / there)]))
        values = torch.stack(rows).mean(0).tolist()
        shown = torch.stack(pairs[:_SHOWN], 1).flatten(0, 1)
        grid = make_grid(to_pictures(shown), columns=len(pairs[:_SHOWN]))
        return dict(zip(("psnr", "cosine", "gradients_kept"), values, strict=True)), grid

    def write(self, directory: Path) -> None:
        """See `Stage`."""
        copy.deepcopy(self.network).half().save_pretrained(directory / "vae")

    def state(self) -> dict[str, Any]:
        """See `Stage`: the judge's."""
        judge = self.accelerator.unwrap_model(self._judge)
        return {"judge": judge.state_dict(), "judge_optimizer": self._judge_optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Stage`."""
        self.accelerator.unwrap_model(self._judge).load_state_dict(state["judge"])
        self._judge_optimizer.load_state_dict(state["judge_optimizer"])
