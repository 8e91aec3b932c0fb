"""What all baselines share: their settings, what they learned, and the file it is saved in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.features.networks import FeatureExtractor
from anomaly_detector_ros.features.upsampling import upsample_bilinear
from anomaly_detector_ros.runtime.fitted_file import open_fitted, save_fitted
from anomaly_detector_ros.runtime.parts import PartRegistry
from anomaly_detector_ros.runtime.progress import Progress, silent
from anomaly_detector_ros.runtime.tensors import to_tensor

KIND = "baseline"


State = dict[str, Tensor]

# Floats of a batch of vectors; 20 Gaussians make 84 MB of temporary memory of it.
_BATCH_FLOATS = 2**20
# A flow may map a vector far from all nominal ones beyond the range of float32.
_LARGEST = 1e30


@dataclass(frozen=True)
class Baseline(ABC):
    """Learns the nominal feature vectors and scores others by how little they resemble them.

    The fields are the settings. Runs on the CPU in float32, whatever device the features are on.

    Attributes:
        name: as it is registered.
        libraries: the distributions it is fitted with; their versions are saved.
    """

    name: ClassVar[str]
    libraries: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def learn(self, vectors: Tensor, seed: int, progress: Progress) -> State:
        """Vectors (N, C) float32 -> all that `scorer` needs, by name; what a file holds."""

    @abstractmethod
    def scorer(self, state: State) -> Callable[[Tensor], Tensor]:
        """What `learn` returned -> a function of vectors (N, C) float32 to scores (N,).

        Raises:
            KeyError, RuntimeError, ValueError: a bad state.
        """

    def fit(
        self,
        vectors: Tensor,
        seed: int = 0,
        progress: Progress = silent,
    ) -> FittedBaseline:
        """Learns nominal feature vectors; the same seed gives the same result.

        Args:
            vectors: (N, C) float32, as `sampling.sample_features` draws them.
            seed: of all random choices.
            progress: called with the work done, the total, and its name.

        Raises:
            UserError: no matrix, values that are not finite, or too few vectors.
        """
        if vectors.ndim != 2 or not vectors.numel():
            raise UserError(
                f"{self.name}: features of shape {tuple(vectors.shape)}: give vectors (N, C)"
            )
        if not torch.isfinite(vectors).all():
            raise UserError(f"{self.name}: features that are not finite: check the extractor")
        state = self.learn(vectors.detach().cpu().float(), seed, progress)
        return FittedBaseline(self, state, vectors.shape[1])


BASELINES = PartRegistry[Baseline]("baseline", __package__)


class FittedBaseline:
    """A baseline with what it learned.

    Args:
        method: the baseline.
        state: as its `learn` returned.
        channels: C of the features it was fitted on.
    """

    def __init__(self, method: Baseline, state: State, channels: int) -> None:
        self.method, self.state, self.channels = method, state, channels
        self._score_vectors = method.scorer(state)

    @torch.no_grad()
    def score(self, features: Tensor) -> Tensor:
        """Features (B, C, h, w) -> scores (B, h, w) float32, higher is more anomalous.

        Any finite value; in batches, so that temporary memory stays at some hundred megabytes.

        Raises:
            UserError: fitted on features of another width.
        """
        if features.ndim != 4 or features.shape[1] != self.channels:
            raise UserError(
                f"{self.method.name}: features of shape {tuple(features.shape)}: "
                f"it was fitted on (B, {self.channels}, h, w)"
            )
        count, _, height, width = features.shape
        vectors = features.float().cpu().permute(0, 2, 3, 1).reshape(-1, self.channels)
        batches = vectors.split(max(1, _BATCH_FLOATS // self.channels))
        scores = torch.cat([self._score_vectors(batch) for batch in batches])
        scores = scores.nan_to_num(_LARGEST).clamp(-_LARGEST, _LARGEST)
        return scores.reshape(count, height, width).to(features.device)

    @torch.no_grad()
    def score_image(self, extractor: FeatureExtractor, image: np.ndarray) -> np.ndarray:
        """uint8 RGB (H, W, 3) -> raw scores float32 (H, W), higher is more anomalous.

        Any range; without segments, which `segmentation.base.segment_average` adds.

        Args:
            extractor: of the features that it was fitted on.

        Raises:
            UserError: see `score`.
        """
        features = extractor.extract(to_tensor(image[None]))
        scores = upsample_bilinear(self.score(features), image.shape[:2])
        return scores[0].cpu().numpy()

    def save(self, path: Path) -> None:
        """Writes one safetensors file, whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        header = {
            "baseline": self.method.name,
            "settings": asdict(self.method),
            "channels": self.channels,
        }
        save_fitted(path, KIND, header, self.state, ("torch", *self.method.libraries))

    @classmethod
    def load(cls, path: Path) -> FittedBaseline:
        """A fitted baseline as `save` wrote it, with the same scores.

        Raises:
            UserError: missing, truncated or altered, or a file of another kind.
        """
        with open_fitted(path, KIND, "evaluate") as (header, state):
            method = BASELINES.read({**header["settings"], "name": header["baseline"]})
            return cls(method, state, int(header["channels"]))
