"""What a training run optimises, whichever it is."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from anomaly_detector_ros.imaging.light import vary_light
from anomaly_detector_ros.runtime.files import replace_directory
from anomaly_detector_ros.training.config import TrainingConfig
from anomaly_detector_ros.training.dataset import TrainingImages


def half_in_another_light(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1], about half of them as `vary_light` makes them."""
    lit = vary_light(pictures, torch.default_generator)
    other = torch.from_numpy(rng.random(len(pictures)) < 0.5).reshape(-1, 1, 1, 1)
    return torch.where(other.to(pictures.device), lit, pictures)


class Stage(ABC):
    """A network, its loss on a batch, and how good it is.

    What `loss` draws depends on its random generator and torch's global one alone, which the
    trainer seeds anew in every step: so a resumed run is the run that was not interrupted.

    Args:
        config: see `TrainingConfig`.
        images: to train on.
        validation: nominal images held out; optional.
        accelerator: the processes of this run and their devices.
        dtype: of convolutions and products (autocast).

    Attributes:
        network: what is optimised and averaged.
        optimizer: of its parameters.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        config: TrainingConfig,
        images: TrainingImages,
        validation: TrainingImages | None,
        accelerator: Accelerator,
        dtype: torch.dtype,
    ) -> None:
        self.config, self.images, self.validation = config, images, validation
        self.batches = images.on(accelerator.device)
        self.accelerator, self.dtype = accelerator, dtype

    @abstractmethod
    def loss(self, network: nn.Module, rng: np.random.Generator, done: float) -> Tensor:
        """The loss of this process' batch.

        Args:
            network: `network`, as it may be wrapped for several processes.
            rng: of this step and process.
            done: share of the steps that are taken, in [0, 1).
        """

    def after_step(self) -> None:  # noqa: B027  # most stages have nothing to do
        """Called when the optimiser has taken its step."""

    def settle(self) -> None:  # noqa: B027
        """Called when ``network`` holds its averaged weights; other buffers are put back later."""

    @abstractmethod
    def measure(self) -> tuple[dict[str, float], np.ndarray]:
        """Numbers by name, and pictures as one, uint8 RGB (H, W, 3), of the averaged network."""

    @abstractmethod
    def write(self, directory: Path) -> None:
        """Writes ``network`` as a diffusers model into a directory that is there."""

    def save(self, directory: Path, facts: Mapping[str, object] | None = None) -> None:
        """Writes the model, which appears under its name only when it is whole.

        Args:
            directory: replaced if it exists.
            facts: what ``snapshot.json`` says of it; None for no such file.

        Raises:
            OSError: it cannot be written.
        """

        def write(partial: Path) -> None:
            partial.mkdir(parents=True, exist_ok=True)
            self.write(partial)
            if facts is not None:
                (partial / "snapshot.json").write_text(json.dumps(facts) + "\n")

        replace_directory(directory, write)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold beside network and optimiser."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Takes back what `state` returned."""
