"""A detector's parts with their results kept on disk, by the content they were computed from."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomaly_detector_ros.building import Parts
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.evaluation.cache import Cache, array_digest
from anomaly_detector_ros.features.base import FeatureSettings
from anomaly_detector_ros.features.networks import FeatureExtractor
from anomaly_detector_ros.part_settings import describe
from anomaly_detector_ros.profiles import Profile
from anomaly_detector_ros.segmentation.base import Segmenter, SegmenterSettings
from anomaly_detector_ros.weights.loading import Weighted, content_sha256
from anomaly_detector_ros.weights.registry import Registry


class CachedFeatures:
    """An extractor that computes the features of each image once."""

    def __init__(self, extractor: FeatureExtractor, cache: Cache, key: Any) -> None:
        self.extractor, self.cache, self.key = extractor, cache, key
        self.channels, self.stride = extractor.channels, extractor.stride

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

    def __init__(self, segmenter: Segmenter, parts: CachedParts, key: Any) -> None:
        self.segmenter, self.parts, self.key = segmenter, parts, key
        self.needs_map = segmenter.needs_map

    def segment(self, image: np.ndarray, anomaly_map: np.ndarray) -> np.ndarray:
        """As the segmenter's own."""
        seen = [array_digest(anomaly_map)] if self.needs_map else []
        key = [self.key, [self.parts.digest(image), *seen]]
        return self.parts.cache.array(
            "segments", key, lambda: self.segmenter.segment(image, anomaly_map)
        )


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
        self._digests: deque[tuple[np.ndarray, str]] = deque(maxlen=2)

    def features(self, settings: FeatureSettings) -> FeatureExtractor:
        """The extractor, cached."""
        extractor = self.plain_features(settings)
        return CachedFeatures(extractor, self.cache, self.part_key(settings))

    def segmenter(self, settings: SegmenterSettings) -> Segmenter | None:
        """The segmenter, cached."""
        segmenter = super().segmenter(settings)
        if segmenter is None:
            return None
        settings = replace(settings, uncovered="raw")  # not the segmenter's business
        return CachedSegmenter(segmenter, self, self.part_key(settings))

    def edits(self, detector: Detector, image: np.ndarray) -> tuple[Tensor, Tensor]:
        """`Detector.synthesize` of one image: (1, 3, h, w) and its edits (K, 3, h, w)."""

        def compute() -> np.ndarray:
            inputs, edits = detector.synthesize([image])
            return torch.cat([inputs, edits[0]]).cpu().numpy()

        key = [self.edits_key(detector.profile), self.digest(image)]
        both = torch.from_numpy(self.cache.array("edits", key, compute)).to(self.device)
        return both[:1], both[1:]

    def digest(self, array: np.ndarray) -> str:
        """`array_digest` of an image or its labels, hashed once however many methods ask for it.

        Args:
            array: must not change.
        """
        known = next((digest for other, digest in self._digests if other is array), None)
        if known is None:
            known = array_digest(array)
            self._digests.append((array, known))
        return known

    def part_key(self, settings: Weighted) -> Any:
        """A key for what a part makes of its input: its settings and the content of its weights."""
        return self.once(
            "key", settings, lambda: [describe(settings), settings.sha256(self.loader)]
        )

    def profile_key(self, profile: Profile) -> Any:
        """A key for what a detector of this profile finds in an image, before calibration."""
        parts = profile.parts
        return [
            *self._distance_key(profile),
            self.edits_key(profile),
            *map(self.part_key, (parts.features, parts.upsampler, parts.segmenter)),
        ]

    def edits_key(self, profile: Profile) -> Any:
        """A key for the edits that a profile makes of an image."""
        parts = profile.parts
        key = [self.part_key(parts.denoiser), describe(profile.sampler)]
        if parts.distance.guides_edits:
            key += [*self._distance_key(profile), self.part_key(parts.features)]
        return key

    def _distance_key(self, profile: Profile) -> list[Any]:
        file = profile.calibration.get("file") if profile.parts.distance.fitted else None
        return [describe(profile.parts.distance), content_sha256(Path(file)) if file else None]
