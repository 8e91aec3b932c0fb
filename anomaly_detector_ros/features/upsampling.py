"""From the feature grid to the image's pixels: upsamplers by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_detector_ros.distances.cosine import CosineDistance
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.features.featup import STAGES, JbuStack, UpsampledFeatures
from anomaly_detector_ros.features.featup_checkpoint import load_featup
from anomaly_detector_ros.features.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    normalise,
    resize,
)

if TYPE_CHECKING:
    from anomaly_detector_ros.weights.registry import Registry

Settings = Mapping[str, Any]
Size = tuple[int, int]
Metric = Callable[[Tensor, Tensor], Tensor]
"""Features (1, C, h, w) and (K, C, h, w) -> M maps (M, h, w); see `distances.base.Distance`."""

FEATUP_MODEL = "featup_maskclip_jbu"
_MIN_TILE = 16
_COSINE = CosineDistance()
# The names of the upsamplers and their settings.
_SETTINGS = {
    "bilinear": frozenset[str](),
    "none": frozenset[str](),
    "featup": frozenset({"weights", "fixup", "tile"}),
}


class Upsampler(Protocol):
    """Compares the features of an image and of its edits at the resolution of pixels."""

    def distance(
        self,
        original: Tensor,
        edits: Tensor,
        original_image: Tensor,
        edit_images: Tensor,
        size: Size,
        metric: Metric = _COSINE,
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


class GridUpsampler:
    """Compares on the feature grid and enlarges the distances; the images are not looked at.

    Args:
        enlarge: brings (M, h, w) to (M, *size).
    """

    def __init__(self, enlarge: Callable[[Tensor, Size], Tensor]) -> None:
        self._enlarge = enlarge

    @torch.inference_mode()
    def distance(
        self,
        original: Tensor,
        edits: Tensor,
        original_image: Tensor,
        edit_images: Tensor,
        size: Size,
        metric: Metric = _COSINE,
    ) -> Tensor:
        """See `Upsampler.distance`."""
        return self._enlarge(metric(original, edits), size)


class FeatUpUpsampler:
    """Upsamples the features themselves, each map guided by its own image, and compares those.

    The maps grow to the power of two of the grid that reaches ``size``, at most 16 times; the
    distances are then resized. They are compared tile by tile, so that no map is ever held at its
    upsampled resolution.

    Args:
        stack: FeatUp's upsampler.
        device: where it runs.
        fixup: apply its last, residual convolution to features of the width it was trained for.
            It belongs to the features it was trained on: leave it out for others.
        tile: side of a tile in pixels of the upsampled map. Memory grows with its square (about
            400 MB for 128 and 512 channels); smaller tiles overlap more and take longer.

    Raises:
        UserError: ``tile`` is no number from 16.
    """

    def __init__(
        self,
        stack: JbuStack,
        *,
        device: torch.device | str = "cpu",
        fixup: bool = True,
        tile: int = 128,
    ) -> None:
        if not isinstance(tile, int) or tile < _MIN_TILE:
            raise UserError(f"upsampler featup: tile {tile!r}: give at least {_MIN_TILE} pixels")
        if not isinstance(fixup, bool):
            raise UserError(f"upsampler featup: fixup {fixup!r}: give true or false")
        self.device = torch.device(device)
        self._stack = stack.to(self.device)
        self._fixup, self._tile = fixup, tile

    @torch.inference_mode()
    def distance(
        self,
        original: Tensor,
        edits: Tensor,
        original_image: Tensor,
        edit_images: Tensor,
        size: Size,
        metric: Metric = _COSINE,
    ) -> Tensor:
        """See `Upsampler.distance`; h and w must be at least 2."""
        levels = _levels(original.shape[-2:], size)
        reference = self._upsampled(original[0], original_image, levels)
        compared = [
            self._upsampled(features, image[None], levels)
            for features, image in zip(edits, edit_images, strict=True)
        ]
        bands = [
            torch.cat(
                [
                    metric(
                        _as_maps([reference.window(rows, columns)]),
                        _as_maps([edit.window(rows, columns) for edit in compared]),
                    )
                    for columns in _spans(reference.size[1], self._tile)
                ],
                dim=2,
            )
            for rows in _spans(reference.size[0], self._tile)
        ]
        return resize(torch.cat(bands, dim=1)[:, None], size)[:, 0]

    def _upsampled(self, features: Tensor, image: Tensor, levels: int) -> UpsampledFeatures:
        grid = features.shape[-2:]
        if min(grid) < 2:
            raise UserError(
                f"upsampler featup: a grid of {grid[0]}x{grid[1]} features: give larger images"
            )
        # Averaging an image over pixels smaller than its own would repeat them in blocks.
        height, width = (max(i, g << levels) for i, g in zip(image.shape[-2:], grid, strict=True))
        guide = normalise(image.to(self.device), (height, width), IMAGENET_MEAN, IMAGENET_STD)[0]
        return UpsampledFeatures(
            self._stack,
            features.to(self.device).float(),
            guide,
            levels=levels,
            fixup=self._fixup,
        )


def upsample_bilinear(anomaly_map: Tensor, size: Size) -> Tensor:
    """Anomaly maps (B, h, w) at size (H, W): (B, H, W), bilinear, half-pixel centres.

    The result stays within the input's range.
    """
    if tuple(anomaly_map.shape[-2:]) == tuple(size):
        return anomaly_map
    planes = anomaly_map[:, None]
    return F.interpolate(planes, size=tuple(size), mode="bilinear", align_corners=False)[:, 0]


def upsample_nearest(anomaly_map: Tensor, size: Size) -> Tensor:
    """Anomaly maps (B, h, w) at size (H, W): (B, H, W), the nearest cell's value for each pixel."""
    return F.interpolate(anomaly_map[:, None], size=tuple(size), mode="nearest-exact")[:, 0]


def upsampler_names() -> list[str]:
    """Names that ``make_upsampler`` knows."""
    return sorted(_SETTINGS)


def make_upsampler(
    name: str, settings: Settings, registry: Registry, device: torch.device | str
) -> Upsampler:
    """The upsampler called ``name``, its weights from the registry.

    Args:
        name: ``bilinear``, ``none`` (the nearest cell's value) or ``featup``.
        settings: for ``featup``: ``weights`` (path of a checkpoint; the registry's by default),
            and ``fixup`` and ``tile`` of `FeatUpUpsampler`. ``name`` may stand among them.
        registry: finds the weights; not asked where there are none.
        device: where ``featup`` runs.

    Raises:
        UserError: unknown name or setting, a setting out of range, or weights not fetched.
    """
    options = _options(name, settings)
    if name == "bilinear":
        return GridUpsampler(upsample_bilinear)
    if name == "none":
        return GridUpsampler(upsample_nearest)
    weights = options.pop("weights", None)
    path = _featup_file(registry) if weights is None else Path(str(weights)).expanduser()
    return FeatUpUpsampler(load_featup(path), device=device, **options)


def weights_needed(name: str, settings: Settings) -> list[str]:
    """The registry's models that must be fetched for an upsampler.

    Raises:
        UserError: unknown name or setting.
    """
    options = _options(name, settings)
    return [FEATUP_MODEL] if name == "featup" and options.get("weights") is None else []


def _options(name: str, settings: Settings) -> dict[str, Any]:
    if name not in _SETTINGS:
        raise UserError(f"upsampler {name!r}: unknown: take one of {', '.join(upsampler_names())}")
    options = {key: value for key, value in settings.items() if key != "name"}
    unknown = sorted(set(options) - _SETTINGS[name])
    if unknown:
        raise UserError(
            f"upsampler {name}: unknown setting {', '.join(unknown)}: "
            f"take {', '.join(sorted(_SETTINGS[name])) or 'none'}"
        )
    return options


def _featup_file(registry: Registry) -> Path:
    return registry.path(FEATUP_MODEL) / registry.entry(FEATUP_MODEL).files[0].name


def _levels(grid: Size, size: Size) -> int:
    """How often to double a grid until it reaches ``size``, as far as there are stages."""
    for levels in range(STAGES):
        if grid[0] << levels >= size[0] and grid[1] << levels >= size[1]:
            return levels
    return STAGES


def _spans(length: int, side: int) -> list[slice]:
    return [slice(start, min(start + side, length)) for start in range(0, length, side)]


def _as_maps(windows: list[Tensor]) -> Tensor:
    """B windows (rows, columns, C) as (B, C, rows, columns)."""
    return torch.stack(windows).permute(0, 3, 1, 2)
