"""What can be trained, and the settings that depend on it: what help texts name, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHIPPED_AUTOENCODER = "offroad_latent"
"""The model in the registry whose autoencoder a denoiser takes by default."""

STAGE_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "pixels": {
        "size": (64, 120),
        "preset": "small",
        "batch_size": 8,
        "learning_rate": 4e-4,
        "min_crop": 0.8,
    },
    "autoencoder": {
        "size": (272, 512),
        "preset": "base",
        "batch_size": 8,
        "learning_rate": 7e-4,
        "min_crop": 0.75,
    },
    "denoiser": {
        "size": (272, 512),
        "preset": "base",
        "batch_size": 16,
        "learning_rate": 5e-4,
        "min_crop": 0.86,
    },
}
"""By stage, fields of `TrainingConfig`."""
