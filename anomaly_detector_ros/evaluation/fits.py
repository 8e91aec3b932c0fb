"""Baselines and distances fitted on nominal images, each once, kept in the cache."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor

from anomaly_detector_ros.baselines.base import BASELINES, FittedBaseline
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.distances.base import Distance, Tensors
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.evaluation.cache import files_digest
from anomaly_detector_ros.evaluation.cached import CachedParts
from anomaly_detector_ros.features.base import FeatureSettings
from anomaly_detector_ros.features.sampling import sample_features
from anomaly_detector_ros.fitting import NominalFiles
from anomaly_detector_ros.profiles import Profile
from anomaly_detector_ros.runtime.progress import Progress, silent

VECTORS = 50_000
"""Feature vectors drawn for a baseline, as many as the paper's."""
IMAGES = 40
"""How many nominal images, evenly spread, a distance that looks at edits is fitted on."""


class Fits:
    """Fits baselines and distances to nominal images.

    Args:
        images: nominal images: baselines, and distances that look at no edits, take all of them.
        progress: called with (done, total, what is being done).
    """

    def __init__(
        self, parts: CachedParts, images: Sequence[Path], seed: int, progress: Progress = silent
    ) -> None:
        self.parts, self.cache, self.images = parts, parts.cache, list(images)
        self.seed, self.progress = seed, progress

    def baseline(
        self, settings: Mapping[str, Any], features: FeatureSettings, lights: int = 0
    ) -> tuple[FittedBaseline, Any]:
        """The baseline of these settings fitted on an extractor's features, and its key.

        Args:
            lights: in how many other lights it sees each image besides its own.

        Raises:
            UserError: unknown settings, or there are no nominal images.
        """
        method = BASELINES.read(settings)
        if not self.images:
            raise UserError(f"{method.name} is fitted on nominal images: give --train-root")
        space = self._space(features, lights)
        # Its code too: a baseline of one's own is edited between runs.
        code = files_digest([Path(inspect.getfile(type(method)))])
        key = [method.name, asdict(method), code, space]
        file = self.cache.path("baselines", key, ".safetensors")
        with PartialState().main_process_first():
            if not file.is_file():
                vectors = self.vectors(features, lights)
                fitted = method.fit(vectors, self.seed, self.progress)
                self.cache.keep(file, fitted.save)
        return FittedBaseline.load(file), key

    def distance(self, profile: Profile) -> tuple[Distance, Any]:
        """The profile's distance, and what it was fitted on and for, as a key.

        Raises:
            UserError: images that are all alike.
        """
        settings, files = profile.parts.distance, self.distance_images(profile)
        if settings.collects_edits:
            plain = replace(
                profile, distance={"name": "cosine"}, calibration={}, segmenter={"name": "none"}
            )
            seen = self.parts.profile_key(plain)
        else:
            seen = self.parts.part_key(profile.parts.features)
        key = [profile.distance["name"], settings.collect_key(), seen, files_digest(files)]
        key.append(self.seed)
        with PartialState().main_process_first():
            file = self.parts.cache.path("distances", key, ".safetensors")
            if not file.is_file():
                collected = self._collect(profile, files)
                self.parts.cache.keep(file, lambda partial: save_file(dict(collected), partial))
            distance = settings.fit([load_file(file)])
        return distance.to(self.parts.device), [key, asdict(settings)]

    def _collect(self, profile: Profile, files: Sequence[Path]) -> Tensors:
        images = _CachedEdits(profile, self.parts, files, self.seed, self.progress)
        return profile.parts.distance.collect(images, 1)

    def distance_images(self, profile: Profile) -> list[Path]:
        """Those that the profile's distance is fitted on."""
        if not profile.parts.distance.collects_edits:
            return self.images
        chosen = np.unique(np.linspace(0, len(self.images) - 1, IMAGES).round().astype(int))
        return [self.images[i] for i in chosen]

    @cached_property
    def _images_digest(self) -> str:
        return files_digest(self.images)

    def _space(self, features: FeatureSettings, lights: int) -> Any:
        """A key for `vectors`."""
        return [self.parts.part_key(features), self._images_digest, VECTORS, lights, self.seed]

    def vectors(self, features: FeatureSettings, lights: int = 0) -> Tensor:
        """At most `VECTORS` feature vectors (N, C) of the nominal images, always the same ones.

        Args:
            lights: in how many other lights each image is seen besides its own.

        Raises:
            UserError: there are no nominal images.
        """

        def compute() -> Any:
            extractor = self.parts.plain_features(features)
            return sample_features(
                extractor,
                self.images,
                VECTORS,
                self.seed,
                lights,
                lambda done: self.progress(done, len(self.images), "training features"),
            ).numpy()

        return torch.from_numpy(self.cache.array("vectors", self._space(features, lights), compute))


class _CachedEdits(NominalFiles):
    """Nominal images whose edits come from the evaluation's cache."""

    parts: CachedParts

    def edit(self, detector: Detector, image: np.ndarray) -> tuple[Tensor, Tensor]:
        """See `NominalFiles`."""
        return self.parts.edits(detector, image)
