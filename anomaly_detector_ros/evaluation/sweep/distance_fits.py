"""Distances fitted for an evaluation, kept in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from anomaly_detector_ros.building import Parts
from anomaly_detector_ros.calibration.calibration import FittedDistance
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.distances.base import (
    NominalDifferences,
    WhitenedDistance,
    distance_settings,
)
from anomaly_detector_ros.distances.novelty import NoveltyDistance
from anomaly_detector_ros.evaluation.cache import files_digest
from anomaly_detector_ros.evaluation.cached import CachedParts
from anomaly_detector_ros.fitting.distance import Progress, fit_novelty
from anomaly_detector_ros.imaging.images import read_rgb
from anomaly_detector_ros.profiles import Profile

IMAGES = 40
"""How many nominal images a whitened distance is fitted on, evenly spread over those at hand."""


class DistanceFits:
    """Fits the distance of a profile to its edits and features, each once.

    Args:
        images: nominal images: all make a memory, `IMAGES` of them a covariance.
        progress: called with (done, total, what is being done).
    """

    def __init__(
        self,
        parts: CachedParts,
        images: Sequence[Path],
        seed: int = 0,
        progress: Progress = lambda done, total, doing: None,
    ) -> None:
        chosen = np.unique(np.linspace(0, len(images) - 1, IMAGES).round().astype(int))
        self.parts, self.seed, self.progress = parts, seed, progress
        self.all_images, self.images = images, [images[i] for i in chosen]

    def __call__(self, profile: Profile) -> tuple[FittedDistance, Any]:
        """The distance, and what it was fitted on and for, as a key.

        Raises:
            UserError: a bad setting; images that are all alike.
        """
        profile = replace(profile, distance=distance_settings(profile.distance))
        with PartialState().main_process_first():
            if profile.distance["name"] == "novelty":
                return self._novelty(profile)
            return self._whitened(profile)

    def _novelty(self, profile: Profile) -> tuple[FittedDistance, Any]:
        settings = profile.distance
        features = self.parts.features_key(profile.features)
        key = [settings["memory"], features, files_digest(self.all_images), self.seed]

        def drawn() -> np.ndarray:
            # Without the cache, which would keep every map of every image.
            plain = Parts(self.parts.device, self.parts.registry, offline=self.parts.offline)
            fitted = fit_novelty(profile, plain, self.all_images, self.seed, self.progress)
            return fitted.memory.cpu().numpy()

        memory = torch.from_numpy(self.parts.cache.array("memories", key, drawn).copy())
        distance = NoveltyDistance(memory, float(settings["edit_weight"]))
        return distance.to(self.parts.device), [*key, settings["edit_weight"]]

    def _whitened(self, profile: Profile) -> tuple[FittedDistance, Any]:
        compared = replace(
            profile, distance={"name": "cosine"}, calibration={}, segmenter={"name": "none"}
        )
        key = [profile.distance, self.parts.profile_key(compared), files_digest(self.images)]
        kept = self.parts.cache.array("whitenings", key, lambda: self._fit(profile))
        mean, factor = torch.from_numpy(kept[0].copy()), torch.from_numpy(kept[1:].copy())
        return WhitenedDistance(mean, factor).to(self.parts.device), key

    def _fit(self, profile: Profile) -> np.ndarray:
        """Mean (1, C) over factor (C, C)."""
        seen = NominalDifferences()
        detector = Detector.from_parts(profile, self.parts, distance=seen, calibrated=False)
        for done, file in enumerate(self.images, 1):
            image = read_rgb(file)
            original, edits = self.parts.edits(detector, image)
            detector.compare(image, original, edits)
            self.progress(done, len(self.images), "nominal differences")
        fitted = seen.whitened(profile.distance["shrinkage"])
        return torch.cat([fitted.mean[None], fitted.factor]).numpy()
