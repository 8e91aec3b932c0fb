"""Tiny training runs for the tests, in this process and in others."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from anomaly_detector_ros.sources.folders import find_images
from anomaly_detector_ros.training import autoencoding, config, measures
from anomaly_detector_ros.training.config import SIZE_PRESETS, TrainingConfig
from anomaly_detector_ros.training.dataset import TrainingImages
from anomaly_detector_ros.training.losses import PatchFeatures
from anomaly_detector_ros.training.trainer import Trainer

NARROW = (32, 32)
SIZE = (16, 24)
TINY_AUTOENCODER = {
    "latent_channels": 4,
    "channels": (8, 8, 16),
    "encoder_blocks": (0, 0, 1),
    "decoder_blocks": (0, 0, 1),
}
CONFIG = TrainingConfig(size=SIZE, steps=6, batch_size=2, warmup_steps=2)


def scene(seed: int) -> np.ndarray:
    """A picture of its own, uint8 RGB (40, 60, 3): a bright textured sky over a darker ground."""
    rng = np.random.default_rng(seed)
    texture = cv2.resize(rng.integers(0, 100, (10, 15, 3), np.uint8), (60, 40))
    texture[: rng.integers(15, 25)] += 120
    return texture


def write_scenes(folder: Path, count: int = 24, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        cv2.imwrite(str(folder / f"{i:03d}.png"), cv2.cvtColor(scene(i), cv2.COLOR_RGB2BGR))
    return folder


def trainer(
    images: Path, output: Path, config: TrainingConfig = CONFIG, held_out: Path | None = None
) -> Trainer:
    def read(folder: Path) -> TrainingImages:
        return TrainingImages(find_images(folder), config.size, config.min_crop)

    return Trainer(config, read(images), output, read(held_out) if held_out else None, device="cpu")


def shrink() -> None:
    """Makes network and samples tiny, in a process of its own."""
    SIZE_PRESETS["small"] = NARROW
    measures._SAMPLING_STEPS = 2


class FewFeatures(PatchFeatures):
    """Random weights in one layer stand for DINOv2's."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.layer = torch.nn.Conv2d(3, 8, 14, 14)
        self.requires_grad_(False)

    @classmethod
    def fetched(cls):
        return cls()

    def forward(self, pictures):
        return [self.layer(pictures)]


def shrink_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the networks of latent diffusion tiny; DINOv2 is not needed."""
    monkeypatch.setattr(config, "AUTOENCODER", TINY_AUTOENCODER)
    monkeypatch.setitem(config.LATENT_PRESETS, "small", (32, 64, 64))
    monkeypatch.setattr(measures, "_SAMPLING_STEPS", 2)
    monkeypatch.setattr(autoencoding, "_STATISTICS_BATCHES", 2)
    monkeypatch.setattr(autoencoding, "PatchFeatures", FewFeatures)


def train_on_and_on(images: Path, output: Path, config: TrainingConfig) -> None:
    """For a process that is to be killed."""
    shrink()
    trainer(images, output, config).run(save_every=2)


def train_as_one_of_two(
    rank: int, port: int, images: Path, output: Path, interrupted_at: int | None
) -> None:
    """What `accelerate launch --num_processes 2` starts, with the environment it sets."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    shrink()
    run = trainer(images, output)
    if interrupted_at is not None:
        for _ in range(interrupted_at):
            run.train_step()
        run.save(0.0, 1.0)
        run.accelerator.wait_for_everyone()
        run = trainer(images, output)
        assert run.step == interrupted_at
    losses: list[float] = []
    run.on_step = lambda step, loss: losses.append(loss)
    run.run(save_every=3)
    weights = [p.detach().double().sum().item() for p in run.network.parameters()]
    np.savez(output.with_name(f"{output.name}_{rank}.npz"), losses=losses, weights=weights)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
