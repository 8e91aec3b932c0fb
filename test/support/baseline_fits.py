"""Baselines fitted on small generated vectors, for the tests."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from anomaly_detector_ros.baselines.base import BASELINES, Baseline, FittedBaseline

# Small enough to be fitted in a second each.
SETTINGS = {
    "gmm": {"components": 4, "pca_dims": 8},
    "nearest": {},
    "residual_flow": {"components": 4, "blocks": 2, "layers": 3, "samples": 2, "epochs": 1},
    "flow": {"components": 4, "pca_dims": 8, "transforms": 2, "hidden_features": 16, "epochs": 2},
}


def blobs(count: int, channels: int, seed: int = 0) -> Tensor:
    """Vectors around four centres, in directions of unequal spread."""
    rng = np.random.default_rng(seed)
    centres = 5 * np.random.default_rng(99).normal(size=(4, channels))
    spread = np.linspace(0.3, 1.5, channels)
    vectors = centres[rng.integers(4, size=count)] + spread * rng.normal(size=(count, channels))
    return torch.from_numpy(vectors.astype(np.float32))


def as_map(vectors: Tensor) -> Tensor:
    """Vectors (N, C) as one feature map (1, C, 1, N)."""
    return vectors.T[None, :, None]


def scores(baseline: FittedBaseline, vectors: Tensor) -> np.ndarray:
    return baseline.score(as_map(vectors))[0, 0].numpy()


def fitted(name: str, vectors: Tensor, **settings: object) -> FittedBaseline:
    return make(name, **{**SETTINGS[name], **settings}).fit(vectors, seed=3)


def make(name: str, **settings: object) -> Baseline:
    return BASELINES.read({"name": name, **settings})
