"""Whitened distances fitted for an evaluation, kept in the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from anomaly_detector_ros.analysis.distances import (
    NominalDifferences,
    WhitenedDistance,
    distance_settings,
)
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.evaluation.cache import files_digest
from anomaly_detector_ros.evaluation.cached import CachedParts
from anomaly_detector_ros.images import read_rgb
from anomaly_detector_ros.profiles import Profile

IMAGES = 40
"""How many nominal images a distance is fitted on, evenly spread over those at hand."""

Progress = Callable[[int, int, str], None]


class Whitenings:
    """Fits the whitened distance to the edits and features of a profile, each once.

    Args:
        images: nominal images.
        progress: called with (done, total, what is being done).
    """

    def __init__(
        self,
        parts: CachedParts,
        images: Sequence[Path],
        progress: Progress = lambda done, total, doing: None,
    ) -> None:
        chosen = np.unique(np.linspace(0, len(images) - 1, IMAGES).round().astype(int))
        self.parts, self.progress = parts, progress
        self.images = [images[i] for i in chosen]
        self._data_key = files_digest(self.images)

    def __call__(self, profile: Profile) -> tuple[WhitenedDistance, Any]:
        """The distance, and what it was fitted on and for, as a key.

        Raises:
            UserError: a bad setting; images that are all alike.
        """
        settings = distance_settings(profile.distance)
        compared = replace(
            profile, distance={"name": "cosine"}, calibration={}, segmenter={"name": "none"}
        )
        key = [settings, self.parts.profile_key(compared), self._data_key]
        with PartialState().main_process_first():
            kept = self.parts.cache.array("whitenings", key, lambda: self._fit(profile, settings))
        mean, factor = torch.from_numpy(kept[0].copy()), torch.from_numpy(kept[1:].copy())
        return WhitenedDistance(mean, factor).to(self.parts.device), key

    def _fit(self, profile: Profile, settings: dict[str, Any]) -> np.ndarray:
        """Mean (1, C) over factor (C, C)."""
        seen = NominalDifferences()
        detector = Detector.from_parts(profile, self.parts, distance=seen, calibrated=False)
        for done, file in enumerate(self.images, 1):
            image = read_rgb(file)
            original, edits = self.parts.edits(detector, image)
            detector.compare(original, edits, image.shape[:2])
            self.progress(done, len(self.images), "nominal differences")
        fitted = seen.whitened(settings["shrinkage"])
        return torch.cat([fitted.mean[None], fitted.factor]).numpy()
