"""Colours as features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anomaly_detector_ros.features.base import FEATURES, FeatureSettings, Size
from anomaly_detector_ros.features.preprocessing import network_size, resize
from anomaly_detector_ros.weights.loading import Loader


@FEATURES.register("rgb")
@dataclass(frozen=True, kw_only=True)
class Rgb(FeatureSettings):
    """Settings of colours: none but those that all feature spaces have."""

    def extractor(self, loader: Loader, input_size: int | Size | None) -> RgbFeatures:
        """See `FeatureSettings`."""
        return RgbFeatures(input_size=input_size, device=loader.device)


class RgbFeatures:
    """The colours themselves, in [-1, 1], at ``input_size`` or at their own size.

    A baseline: the cosine distance of colours ignores brightness.

    Args:
        input_size: (height, width), the shorter side alone, or None for the images' own size.
        device: where the images are held.
    """

    channels = 3
    stride = 1

    def __init__(
        self,
        *,
        input_size: int | tuple[int, int] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.input_size = input_size
        self.device = torch.device(device)

    def extract(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float in [-1, 1] -> the same as float32, resized to ``input_size``."""
        images = images.to(self.device).float()
        if self.input_size is None:
            return images
        height, width = images.shape[-2:]
        return resize(images, network_size((height, width), self.input_size, 1))
