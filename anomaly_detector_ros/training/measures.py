"""How good a model is while it trains: its error per noise level, and pictures it makes up."""

from __future__ import annotations

import numpy as np
import torch

from anomaly_detector_ros.runtime.tensors import to_pictures, to_tensor
from anomaly_detector_ros.synthesis.denoisers.base import Denoiser
from anomaly_detector_ros.synthesis.samplers.few_step import FewStep
from anomaly_detector_ros.training.dataset import TrainingImages

VALIDATION_LEVELS = (0.2, 0.4, 0.6, 0.8)
"""Noise fractions (see `Schedule.timestep_at`) at which the validation loss is reported."""

_IMAGES = 32
_SAMPLING_STEPS = 25


@torch.no_grad()
def validation_losses(denoiser: Denoiser, images: TrainingImages, seed: int) -> dict[str, float]:
    """Mean squared error of v per noise level, by name, on the same noise for the same seed."""
    rng = np.random.default_rng(seed)
    pictures = np.stack([images.whole(i) for i in images.spread(_IMAGES)])
    x0 = to_tensor(pictures).contiguous()
    losses = {}
    for level in VALIDATION_LEVELS:
        t = denoiser.schedule.timestep_at(level)
        noise = torch.from_numpy(rng.standard_normal(x0.shape, dtype=np.float32))
        x = denoiser.schedule.add_noise(x0, noise, t)
        # v = (alpha x_t - x_0) / sigma
        error = (denoiser(x, t) - x0).square().mean()
        losses[f"validation_{level}"] = float(error) / denoiser.schedule.noise_level(t) ** 2
    return losses


def draw_samples(
    denoiser: Denoiser, count: int, size: tuple[int, int], seed: int, batch_size: int = 8
) -> np.ndarray:
    """Pictures from noise alone in a few deterministic steps, uint8 RGB (N, H, W, 3)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((count, 3, *size), generator=generator)
    # From the highest noise level nothing is left of the input.
    sampler = FewStep(noise_level=1.0, steps=_SAMPLING_STEPS)
    samples = [
        to_pictures(sampler(denoiser, torch.zeros_like(part), initial_noise=part))
        for part in noise.split(batch_size)
    ]
    return np.concatenate(samples)


def make_grid(pictures: np.ndarray, columns: int) -> np.ndarray:
    """Pictures (N, H, W, 3) side by side in rows of ``columns``, which must divide N."""
    count, height, width, channels = pictures.shape
    grid = pictures.reshape(count // columns, columns, height, width, channels)
    grid = grid.transpose(0, 2, 1, 3, 4).reshape(-1, columns * width, channels)
    return np.ascontiguousarray(grid)
