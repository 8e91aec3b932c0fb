"""Features of a network, upsampled by FeatUp: a feature vector for every pixel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anomaly_detector_ros.features.base import FEATURES, FeatureSettings, Size
from anomaly_detector_ros.features.featup import STAGES, JbuStack, UpsampledFeatures, load_featup
from anomaly_detector_ros.features.networks import FeatureExtractor
from anomaly_detector_ros.features.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    network_size,
    normalise,
    resize,
)
from anomaly_detector_ros.weights.loading import Loader

_TILE = 128  # pixels a side that are upsampled at once, which bounds memory


@FEATURES.register("upsampled")
@dataclass(frozen=True, kw_only=True)
class Upsampled(FeatureSettings):
    """Settings of upsampled features; for baselines, whose scores are made pixel by pixel.

    Attributes:
        network: settings of the features that are upsampled, but for their ``input_size``.
        weights: of the upsampler; see `featup.FeatUp`.
        fixup: see `featup.FeatUpUpsampler`.
    """

    network: Mapping[str, Any] = field(
        default_factory=lambda: {"name": "maskclip", "as_in_featup": True}
    )
    weights: str = "featup_maskclip_jbu"
    fixup: bool = True

    def __post_init__(self) -> None:
        """Refuses tiles, and a network of wrong settings."""
        super().__post_init__()
        if self.mode != "whole":
            raise ValueError("mode: upsampled features are of whole images")
        self._of_network(self.input_size)

    def _of_network(self, input_size: int | Size | None) -> FeatureSettings:
        size = {} if input_size is None else {"input_size": input_size}
        return FEATURES.read({**self.network, **size})

    def weights_used(self) -> tuple[str, ...]:
        """See `Weighted`."""
        return (self.weights, *self._of_network(None).weights_used())

    def published(self, loader: Loader) -> Path | None:
        """See `Weighted`."""
        return self._of_network(None).published(loader)

    def extractor(self, loader: Loader, input_size: int | Size | None) -> FeatureExtractor:
        """See `FeatureSettings`."""
        network = self._of_network(input_size).build(loader)
        stack = load_featup(loader.file(self.weights)).to(loader.device)
        return UpsampledExtractor(network, stack, input_size, fixup=self.fixup)


class UpsampledExtractor:
    """Feature maps at 16 times a network's resolution, guided by what the network sees.

    Args:
        network: extracts the features; their grid has at least 2 x 2 cells.
        stack: FeatUp's upsampler, on the device of the features.
        input_size: (height, width) at which images are seen, or the shorter side alone; None:
            their own size.
        fixup: see `featup.FeatUpUpsampler`.
    """

    stride = 1

    def __init__(
        self,
        network: FeatureExtractor,
        stack: JbuStack,
        input_size: int | Size | None,
        *,
        fixup: bool,
    ) -> None:
        self.channels = network.channels
        self._network, self._stack, self._input_size = network, stack, input_size
        self._fixup = fixup

    @torch.inference_mode()
    def extract(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, channels, 16 h, 16 w) float32, h x w the network's grid.

        512 channels at 544 x 672 take 750 MB an image.
        """
        size = (images.shape[-2], images.shape[-1])
        if self._input_size is not None:
            size = network_size(size, self._input_size, self._network.stride)
        images = resize(images, size)
        maps = self._network.extract(images)
        guides = normalise(images.to(maps.device), size, IMAGENET_MEAN, IMAGENET_STD)
        return torch.stack([self._upsample(*pair) for pair in zip(maps, guides, strict=True)])

    def _upsample(self, features: Tensor, guide: Tensor) -> Tensor:
        upsampled = UpsampledFeatures(
            self._stack, features, guide, levels=STAGES, fixup=self._fixup
        )
        height, width = upsampled.size
        whole = features.new_empty((len(features), height, width))
        for top in range(0, height, _TILE):
            for left in range(0, width, _TILE):
                rows = slice(top, min(top + _TILE, height))
                columns = slice(left, min(left + _TILE, width))
                whole[:, rows, columns] = upsampled.window(rows, columns).permute(2, 0, 1)
        return whole
