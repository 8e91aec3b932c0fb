"""A baseline at work on images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from anomaly_detector_ros.baselines.base import FittedBaseline
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.features.extractors import FeatureExtractor, make_features
from anomaly_detector_ros.features.upsampling import upsample_bilinear
from anomaly_detector_ros.runtime.tensors import to_tensor
from anomaly_detector_ros.weights.registry import Registry


class BaselineScorer:
    """Scores images: their features, the baseline's score of each, enlarged to the image.

    Args:
        extractor: the features that the baseline was fitted on.
        baseline: what scores them.

    Raises:
        UserError: the baseline was fitted on features of another width.
    """

    def __init__(self, extractor: FeatureExtractor, baseline: FittedBaseline) -> None:
        if extractor.channels != baseline.channels:
            raise UserError(
                f"{baseline.method.name}: fitted on features of {baseline.channels} channels, not "
                f"{extractor.channels}: take the features it was fitted on"
            )
        self.extractor, self.baseline = extractor, baseline

    @classmethod
    def from_file(
        cls, path: Path, registry: Registry, device: torch.device | str = "cpu"
    ) -> BaselineScorer:
        """A fitted baseline with the features that its file names.

        Raises:
            UserError: see `FittedBaseline.load` and `features.extractors.make_features`.
        """
        baseline = FittedBaseline.load(path)
        name = baseline.features.get("name")
        if name is None:
            raise UserError(f"'{path}' does not name its features: fit the baseline again")
        return cls(make_features(name, baseline.features, registry, device), baseline)

    @torch.no_grad()
    def score(self, image: np.ndarray) -> np.ndarray:
        """uint8 RGB (H, W, 3) -> raw scores float32 (H, W), higher is more anomalous.

        Any range; without segments, which `segmentation.averaging.segment_average` adds.
        """
        features = self.extractor.extract(to_tensor(image[None]))
        scores = upsample_bilinear(self.baseline.score(features), image.shape[:2])
        return scores[0].cpu().numpy()
