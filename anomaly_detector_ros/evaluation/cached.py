"""A detector's parts with their results kept on disk, by the content they were computed from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomaly_detector_ros.building import Parts, weights_sha256
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.distances.base import DISTANCES
from anomaly_detector_ros.evaluation.cache import Cache, array_digest, settings_key
from anomaly_detector_ros.features import extractors, upsampling
from anomaly_detector_ros.features.extractors import FeatureExtractor
from anomaly_detector_ros.profiles import Profile
from anomaly_detector_ros.segmentation import segmenters
from anomaly_detector_ros.segmentation.segmenters import Segmenter
from anomaly_detector_ros.weights.registry import Registry

Settings = Mapping[str, Any]


class CachedFeatures:
    """An extractor that computes the features of each image once."""

    def __init__(self, extractor: FeatureExtractor, cache: Cache, key: Any) -> None:
        self.extractor, self.cache, self.key = extractor, cache, key
        self.channels = extractor.channels

    def extract(self, images: Tensor) -> Tensor:
        """As the extractor's own; every image under a key of its own."""
        maps = [self._one(images[i : i + 1]) for i in range(len(images))]
        return torch.from_numpy(np.concatenate(maps)).to(images.device)

    def _one(self, image: Tensor) -> np.ndarray:
        key = [self.key, array_digest(image.cpu().numpy())]
        return self.cache.array(
            "features", key, lambda: self.extractor.extract(image).cpu().numpy()
        )


class CachedSegmenter:
    """A segmenter that computes the segments of each image, or image and map, once."""

    def __init__(self, segmenter: Segmenter, cache: Cache, key: Any) -> None:
        self.segmenter, self.cache, self.key = segmenter, cache, key
        self.needs_map = segmenter.needs_map

    def segment(self, image: np.ndarray, anomaly_map: np.ndarray) -> np.ndarray:
        """As the segmenter's own."""
        shown = [image, anomaly_map] if self.needs_map else [image]
        key = [self.key, [array_digest(array) for array in shown]]
        return self.cache.array("segments", key, lambda: self.segmenter.segment(image, anomaly_map))


class CachedParts(Parts):
    """Parts whose features, segments and edits are kept in a cache."""

    def __init__(
        self,
        cache: Cache,
        device: torch.device,
        registry: Registry | None = None,
        *,
        offline: bool = False,
    ) -> None:
        super().__init__(device, registry, offline=offline)
        self.cache = cache

    def features(self, settings: Settings) -> FeatureExtractor:
        """The extractor, cached."""
        extractor = self.plain_features(settings)
        return CachedFeatures(extractor, self.cache, self.features_key(settings))

    def segmenter(self, settings: Settings) -> Segmenter | None:
        """The segmenter, cached."""
        segmenter = super().segmenter(settings)
        if segmenter is None:
            return None
        # What becomes of uncovered pixels is not the segmenter's business.
        own = {name: value for name, value in settings.items() if name != "uncovered"}
        key = self._key(own, segmenters.weights_needed(settings["name"], settings))
        return CachedSegmenter(segmenter, self.cache, key)

    def edits(self, detector: Detector, image: np.ndarray) -> tuple[Tensor, Tensor]:
        """`Detector.synthesize` of one image: (1, 3, h, w) and its edits (K, 3, h, w)."""

        def compute() -> np.ndarray:
            inputs, edits = detector.synthesize([image])
            return torch.cat([inputs, edits[0]]).cpu().numpy()

        key = [self.edits_key(detector.profile), array_digest(image)]
        both = torch.from_numpy(self.cache.array("edits", key, compute)).to(self.device)
        return both[:1], both[1:]

    def profile_key(self, profile: Profile) -> Any:
        """A key for what a detector of this profile finds in an image."""
        upsampler, segmenter = profile.upsampler, profile.segmenter
        fitted = DISTANCES.read(profile.distance).fitted
        compared = [self._distance_key(profile)] if fitted else []
        return [
            *compared,
            self.edits_key(profile),
            self.features_key(profile.features),
            self._key(upsampler, upsampling.weights_needed(upsampler["name"], upsampler)),
            self._key(segmenter, segmenters.weights_needed(segmenter["name"], segmenter)),
        ]

    def edits_key(self, profile: Profile) -> Any:
        """A key for what a profile's denoiser and sampler make of an image."""
        models = [] if profile.denoiser_is_path() else [str(profile.denoiser["model"])]
        return [self._key(profile.denoiser, models), self._key(profile.sampler, [])]

    def _distance_key(self, profile: Profile) -> Any:
        # Its covariance comes from the calibration file, which is small and may be fitted again.
        return settings_key({**profile.distance, **profile.calibration})

    def features_key(self, settings: Settings) -> Any:
        """A key for what an extractor makes of an image."""
        return self._key(settings, extractors.weights_needed(settings["name"], settings))

    def _key(self, settings: Settings, models: list[str]) -> Any:
        def build() -> Any:
            digests = [
                sha256 for model in models for sha256 in weights_sha256(model, self.registry)
            ]
            return settings_key(settings, digests)

        # Once: files are hashed for it, and every map of every image asks for it.
        return self._once("key", {"settings": dict(settings), "models": models}, build)
