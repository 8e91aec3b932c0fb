"""Upsamplers by name, from the feature grid to the image's pixels, and those without a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_detector_ros.distances.cosine import CosineDistance
from anomaly_detector_ros.runtime.parts import PartRegistry
from anomaly_detector_ros.weights.loading import Loader, Weighted

Size = tuple[int, int]
Metric = Callable[[Tensor, Tensor], Tensor]
"""Features (1, C, h, w) and (K, C, h, w) -> M maps (M, h, w); see `distances.base.Distance`."""

COSINE = CosineDistance()


class Upsampler(Protocol):
    """Compares the features of an image and of its edits at the resolution of pixels."""

    def distance(
        self,
        original: Tensor,
        edits: Tensor,
        original_image: Tensor,
        edit_images: Tensor,
        size: Size,
        metric: Metric = COSINE,
    ) -> Tensor:
        """Distances of feature maps, at ``size``.

        Args:
            original: (1, C, h, w) float32, features of the image.
            edits: (K, C, h, w) float32, features of its edits.
            original_image: (1, 3, H, W) in [-1, 1], what ``original`` was extracted from.
            edit_images: (K, 3, H, W) in [-1, 1], what ``edits`` was extracted from.
            size: height and width of the result.
            metric: compares the features of whatever cells it is given, each cell by itself.

        Returns:
            (M, *size) float32, the metric's maps; of the cosine distance K maps in [0, 2].
        """
        ...


@dataclass(frozen=True)
class UpsamplerSettings(Weighted, ABC):
    """The settings of one upsampler; a subclass registers itself in `UPSAMPLERS`."""

    @abstractmethod
    def build(self, loader: Loader) -> Upsampler:
        """The upsampler.

        Raises:
            UserError: weights that cannot be had.
        """

    def for_features(self, trained: str | None) -> Mapping[str, object]:
        """Settings for another feature space, where this upsampler depends on one.

        Args:
            trained: the model of the registry that was trained for it; None: leave out what was
                trained for one.
        """
        return {}


UPSAMPLERS: PartRegistry[UpsamplerSettings] = PartRegistry(
    "upsampler", "anomaly_detector_ros.features"
)


class GridUpsampler(UpsamplerSettings):
    """Compares on the feature grid and enlarges the distances; the images are not looked at."""

    @abstractmethod
    def enlarge(self, maps: Tensor, size: Size) -> Tensor:
        """(M, h, w) -> (M, *size)."""

    def build(self, loader: Loader) -> GridUpsampler:
        """Itself: it has no weights."""
        return self

    @torch.inference_mode()
    def distance(
        self,
        original: Tensor,
        edits: Tensor,
        original_image: Tensor,
        edit_images: Tensor,
        size: Size,
        metric: Metric = COSINE,
    ) -> Tensor:
        """See `Upsampler.distance`."""
        return self.enlarge(metric(original, edits), size)


@UPSAMPLERS.register("bilinear")
@dataclass(frozen=True)
class Bilinear(GridUpsampler):
    """Interpolates the distances."""

    def enlarge(self, maps: Tensor, size: Size) -> Tensor:
        """See `upsample_bilinear`."""
        return upsample_bilinear(maps, size)


@UPSAMPLERS.register("none")
@dataclass(frozen=True)
class Nearest(GridUpsampler):
    """Every pixel takes its cell's distance."""

    def enlarge(self, maps: Tensor, size: Size) -> Tensor:
        """(M, h, w) -> (M, *size)."""
        return F.interpolate(maps[:, None], size=tuple(size), mode="nearest-exact")[:, 0]


def upsample_bilinear(anomaly_map: Tensor, size: Size) -> Tensor:
    """Anomaly maps (B, h, w) at size (H, W): (B, H, W), bilinear, half-pixel centres.

    The result stays within the input's range.
    """
    if tuple(anomaly_map.shape[-2:]) == tuple(size):
        return anomaly_map
    planes = anomaly_map[:, None]
    return F.interpolate(planes, size=tuple(size), mode="bilinear", align_corners=False)[:, 0]
