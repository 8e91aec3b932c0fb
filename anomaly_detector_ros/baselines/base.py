"""What all baselines share: checks, batches, and the file they are saved in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.runtime.fitted_file import save_fitted

KIND = "baseline"

Progress = Callable[[int, int, str], None]
"""Takes what is done, the total, and what is being done; `cli.common.progress_bar` gives one."""

State = dict[str, Tensor]

# Floats of a batch of vectors; 20 Gaussians make 84 MB of temporary memory of it.
_BATCH_FLOATS = 2**20
# A flow may map a vector far from all nominal ones beyond the range of float32.
_LARGEST = 1e30


class Baseline(ABC):
    """Learns the nominal feature vectors and scores others by how little they resemble them.

    Runs on the CPU in float32, whatever device the features are on.

    Attributes:
        name: the method's.
        libraries: the distributions it is fitted with; their versions are saved.
        settings: the constructor's arguments.
        channels: C of the features it was fitted on, 0 before.
        features: the features it was fitted on, ``name`` and settings as in a profile, for
            whoever scores images with it; the one who fits sets it.
        state: all that is learned, by name; what a file holds.
    """

    name: ClassVar[str]
    libraries: ClassVar[tuple[str, ...]]

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.channels = 0
        self.features: dict[str, Any] = {}
        self.state: State = {}

    @abstractmethod
    def _learn(self, vectors: Tensor, seed: int, progress: Progress) -> State:
        """Vectors (N, C) float32 -> all that `_score_vectors` needs."""

    @abstractmethod
    def _restore(self, state: State) -> None:
        """Readies `_score_vectors`; a KeyError, RuntimeError or ValueError means a bad state."""

    @abstractmethod
    def _score_vectors(self, vectors: Tensor) -> Tensor:
        """Vectors (N, C) float32 -> (N,) scores."""

    def fit(self, features: Tensor, seed: int = 0, progress: Progress | None = None) -> None:
        """Learns nominal feature vectors; the same seed gives the same result.

        Args:
            features: (N, C) float32, as `sampling.sample_features` draws them.
            seed: of all random choices.
            progress: called with the work done, the total, and its name.

        Raises:
            UserError: no matrix, values that are not finite, or too few vectors.
        """
        if features.ndim != 2 or not features.numel():
            raise UserError(
                f"{self.name}: features of shape {tuple(features.shape)}: give vectors (N, C)"
            )
        if not torch.isfinite(features).all():
            raise UserError(f"{self.name}: features that are not finite: check the extractor")
        vectors = features.detach().cpu().float()
        self.load_state(self._learn(vectors, seed, progress or _ignore), vectors.shape[1])

    def load_state(self, state: State, channels: int) -> None:
        """Takes over what another baseline of the same settings learned."""
        self._restore(state)
        self.state, self.channels = state, channels

    @torch.no_grad()
    def score(self, features: Tensor) -> Tensor:
        """Features (B, C, h, w) -> scores (B, h, w) float32, higher is more anomalous.

        Any finite value; in batches, so that temporary memory stays at some hundred megabytes.

        Raises:
            UserError: not fitted yet, or fitted on features of another width.
        """
        if not self.channels:
            raise UserError(f"{self.name}: not fitted yet: call fit or load a fitted one")
        if features.ndim != 4 or features.shape[1] != self.channels:
            raise UserError(
                f"{self.name}: features of shape {tuple(features.shape)}: "
                f"it was fitted on (B, {self.channels}, h, w)"
            )
        count, _, height, width = features.shape
        vectors = features.float().cpu().permute(0, 2, 3, 1).reshape(-1, self.channels)
        batches = vectors.split(max(1, _BATCH_FLOATS // self.channels))
        scores = torch.cat([self._score_vectors(batch) for batch in batches])
        scores = scores.nan_to_num(_LARGEST).clamp(-_LARGEST, _LARGEST)
        return scores.reshape(count, height, width).to(features.device)

    def save(self, path: Path) -> None:
        """Writes one safetensors file, whole or not at all; `methods.load_baseline` reads it.

        Raises:
            UserError: not fitted yet.
            OSError: the file cannot be written.
        """
        if not self.channels:
            raise UserError(f"{self.name}: not fitted yet: fit it before saving")
        header = {
            "baseline": self.name,
            "settings": self.settings,
            "features": self.features,
            "channels": self.channels,
        }
        save_fitted(path, KIND, header, self.state, ("torch", *self.libraries))


def whole_number(baseline: str, setting: str, value: Any, minimum: int = 1) -> int:
    """``value`` if it is a whole number of at least ``minimum``; else a UserError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise UserError(f"{baseline}: {setting} {value!r}: take a whole number from {minimum}")
    return value


def one_of(baseline: str, setting: str, value: Any, choices: tuple[str, ...]) -> str:
    """``value`` if it is among ``choices``; else a UserError."""
    if value not in choices:
        raise UserError(f"{baseline}: {setting} {value!r}: take {' or '.join(choices)}")
    return value


def _ignore(done: int, total: int, what: str) -> None:
    del done, total, what
