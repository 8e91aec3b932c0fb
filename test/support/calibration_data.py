"""Nominal data drawn by code, for the tests of calibrations."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from anomaly_detector_ros.calibration.distribution import ScoreDistribution, ScorePool
from anomaly_detector_ros.distances.whitened import NominalDifferences, Whitened, WhitenedDistance

CHANNELS, EDITS = 4, 3


def gaussian_pairs(
    seed: int, size: tuple[int, int] = (40, 50), edits: int = EDITS
) -> tuple[Tensor, Tensor]:
    """Features whose mean difference is Gaussian with a mean and a full covariance."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.tensor([[3.0, 0, 0, 0], [2, 0.1, 0, 0], [0, 1, 0.5, 0], [0.2, 0, 1, 2]])
    difference = torch.randn(1, CHANNELS, *size, generator=generator)
    difference = torch.einsum("ij,bjhw->bihw", mixing, difference) + 5.0
    around = torch.randn(edits, CHANNELS, *size, generator=generator)
    around -= around.mean(0, keepdim=True)
    original = torch.randn(1, CHANNELS, *size, generator=generator) * 10
    return original, original - difference + around


def whitened(*pairs: tuple[Tensor, Tensor], shrinkage: float = 1e-6) -> WhitenedDistance:
    learner = NominalDifferences()
    for pair in pairs:
        learner(*pair)
    return Whitened(shrinkage).fit([learner.tensors()])


def pooled(*images: np.ndarray) -> ScoreDistribution:
    """The distribution of the scores of images."""
    pool = ScorePool()
    for image in images:
        pool.add(image, 0.0)
    return pool.distribution()


def draw_pictures(folder: Path, count: int, seed: int) -> list[Path]:
    """Smooth random pictures, all of one kind."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for index in range(count):
        coarse = rng.normal(110, 25, (6, 9, 3)).clip(0, 255).astype(np.uint8)
        picture = cv2.resize(coarse, (60, 40), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{index:03d}.png"), picture)
    return sorted(folder.iterdir())
