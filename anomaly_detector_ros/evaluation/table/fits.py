"""Baselines fitted on training images, kept in the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from anomaly_detector_ros.baselines.base import BASELINES, FittedBaseline
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.evaluation.cache import files_digest
from anomaly_detector_ros.evaluation.cached import CachedParts
from anomaly_detector_ros.features.sampling import sample_features

Progress = Callable[[int, int, str], None]


class Fits:
    """Fits baselines, each once per feature space and set of training images.

    Args:
        images: nominal training images.
        count: feature vectors drawn from them.
        progress: called with (done, total, what is being done).
    """

    def __init__(
        self,
        parts: CachedParts,
        images: Sequence[Path],
        *,
        count: int = 50_000,
        seed: int = 0,
        progress: Progress = lambda done, total, doing: None,
    ) -> None:
        self.parts, self.cache, self.images = parts, parts.cache, list(images)
        self.count, self.seed, self.progress = count, seed, progress
        self._data_key: str | None = None

    def __call__(self, name: str, features: Mapping[str, Any]) -> tuple[FittedBaseline, Any]:
        """The baseline fitted on the extractor that ``features`` describes, and its key.

        Raises:
            UserError: there are no training images.
        """
        if not self.images:
            raise UserError(f"{name} is fitted on nominal images: give --train-root")
        if self._data_key is None:
            self._data_key = files_digest(self.images)
        space = [self.parts.features_key(features), self._data_key, self.count, self.seed]
        method = BASELINES.read({"name": name})
        key = [method.name, space]
        file = self.cache.path("baselines", key, ".safetensors")
        with PartialState().main_process_first():
            if not file.is_file():
                vectors = self._vectors(features, space)
                fitted = method.fit(vectors, self.seed, self.progress, features)
                self.cache.keep(file, fitted.save)
        return FittedBaseline.load(file), key

    def _vectors(self, features: Mapping[str, Any], space: Any) -> Tensor:
        """Feature vectors (N, C) of the training images, the same ones for every baseline."""

        def compute() -> Any:
            extractor = self.parts.plain_features(features)
            return sample_features(
                extractor,
                self.images,
                self.count,
                self.seed,
                lambda done: self.progress(done, len(self.images), "training features"),
            ).numpy()

        return torch.from_numpy(self.cache.array("vectors", space, compute))
