"""FeatUp's joint bilateral upsampling (JBU): feature maps that follow the edges of their image.

Fu, Hamilton et al., "FeatUp: A Model-Agnostic Framework for Features at Any Resolution", ICLR 2024.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.features.featup_filter import (
    DIAMETER,
    RADIUS,
    bicubic_taps,
    filter_cells,
    fold_bicubic,
)
from anomaly_detector_ros.features.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    normalise,
    resize,
)
from anomaly_detector_ros.features.upsampling import (
    COSINE,
    UPSAMPLERS,
    Metric,
    Size,
    UpsamplerSettings,
)
from anomaly_detector_ros.weights.loading import Loader

STAGES = 4
_KEYS = 32
_RESIDUAL = 0.1
_PREFIX = "upsampler."  # of the upsampler's tensors in a checkpoint


@UPSAMPLERS.register("featup")
@dataclass(frozen=True)
class FeatUp(UpsamplerSettings):
    """Settings of FeatUp.

    Attributes:
        weights: path of a checkpoint, with a slash in it, or a model of the registry.
        fixup, tile: see `FeatUpUpsampler`.
    """

    weights: str = "featup_maskclip_jbu"
    fixup: bool = True
    tile: Annotated[int, Ge(16)] = 128

    def weights_used(self) -> tuple[str, ...]:
        """See `Weighted`."""
        return (self.weights,)

    def build(self, loader: Loader) -> FeatUpUpsampler:
        """See `UpsamplerSettings`."""
        stack = load_featup(loader.file(self.weights))
        return FeatUpUpsampler(stack, device=loader.device, fixup=self.fixup, tile=self.tile)

    def for_features(self, trained: str | None) -> Mapping[str, object]:
        """See `UpsamplerSettings`: its last projection is trained for one, whatever the width."""
        return {"weights": trained, "fixup": True} if trained else {"fixup": False}


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
    """

    def __init__(
        self,
        stack: JbuStack,
        *,
        device: torch.device | str = "cpu",
        fixup: bool = True,
        tile: int = 128,
    ) -> None:
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
        metric: Metric = COSINE,
    ) -> Tensor:
        """See `Upsampler.distance`; h and w must be at least 2."""
        levels = _levels((original.shape[-2], original.shape[-1]), size)
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


class JbuStage(nn.Module):
    """The kernels of one doubling, from the image that guides it.

    With i a pixel, j one of the 7x7 pixels around it, p_j the projected colour of j and d_ij their
    distance in units of 3 pixels along each axis:

        w_ij = softmax_j(t <p_i, p_j>) exp(-d_ij^2 / (2 sigma^2))
        k_i = w_i / sum_j w_ij + 0.1 fixup(w_i / sum_j w_ij, colour of i)

    The kernels don't depend on the features. They don't sum to exactly 1, because of ``fixup``:
    equal features keep their direction, not their length. Parameters have FeatUp's names.
    """

    def __init__(self) -> None:
        super().__init__()
        taps = DIAMETER**2
        self.range_temp = nn.Parameter(torch.tensor(0.0))
        self.sigma_spatial = nn.Parameter(torch.tensor(1.0))
        self.range_proj = _two_layers(3, _KEYS)
        self.fixup_proj = _two_layers(3 + taps, taps)

    def forward(self, guide: Tensor) -> Tensor:
        """Normalised image (3, H + 6, W + 6), with a border of 3 pixels -> (H, W, 7, 7)."""
        keys = self.range_proj(guide)
        queries = _inner(keys)
        height, width = queries.shape[1:]
        likeness = torch.stack(
            [
                (queries * keys[:, y : y + height, x : x + width]).sum(0)
                for y in range(DIAMETER)
                for x in range(DIAMETER)
            ]
        )
        temperature = self.range_temp.exp().clamp(1e-4, 1e4)
        weights = torch.softmax(temperature * likeness, 0) * self._spatial_kernel()
        weights = weights / weights.sum(0).clamp_min(1e-7)
        weights = weights + _RESIDUAL * self.fixup_proj(torch.cat([weights, _inner(guide)]))
        kernels: Tensor = weights.permute(1, 2, 0).unflatten(2, (DIAMETER, DIAMETER))
        return kernels

    def _spatial_kernel(self) -> Tensor:
        squares = torch.linspace(-1, 1, DIAMETER, device=self.sigma_spatial.device).square()
        distances = (squares[:, None] + squares).view(-1, 1, 1)
        return torch.exp(-distances / (2 * self.sigma_spatial.square()))


class JbuStack(nn.Module):
    """Four doublings, then a residual 1x1 convolution: f + 0.1 (W f + b).

    Args:
        channels: width of the features that W was trained for; others are upsampled without it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.up1, self.up2, self.up3, self.up4 = (JbuStage() for _ in range(STAGES))
        # The identity stands for dropout, so that the weights keep FeatUp's names.
        self.fixup_proj = nn.Sequential(nn.Identity(), nn.Conv2d(channels, channels, 1))

    @property
    def stages(self) -> list[JbuStage]:
        """The four doublings in their order."""
        return [self.up1, self.up2, self.up3, self.up4]


@dataclass(frozen=True)
class _Level:
    """What doubles the map below: stage, padded guide (3, H + 6, W + 6), bicubic taps."""

    stage: JbuStage
    guide: Tensor
    row_taps: Tensor
    column_taps: Tensor

    def kernels(self, rows: slice, columns: slice) -> Tensor:
        """Kernels over the cells below, of the pixels in a window: (H, W, 7, 7)."""
        padded_rows = slice(rows.start, rows.stop + 2 * RADIUS)
        padded_columns = slice(columns.start, columns.stop + 2 * RADIUS)
        guide = self.guide[:, padded_rows, padded_columns]
        return fold_bicubic(self.stage(guide), self.row_taps[rows], self.column_taps[columns])


class UpsampledFeatures:
    """A feature map at 2^n times its size, of which any window can be computed by itself.

    A window needs at each level only the window of half its size below it and 3 cells around that,
    so memory does not grow with the size of the map.

    Args:
        stack: the upsampler; its first ``levels`` stages are used.
        features: (C, h, w) float32, h and w at least 2.
        guide: (3, H, W), the image behind the features, normalised with ImageNet's mean and
            standard deviation. Each level takes its average over the level's pixels.
        levels: n, 0 to 4.
        fixup: apply the residual convolution, where the features have its width.
    """

    def __init__(
        self, stack: JbuStack, features: Tensor, guide: Tensor, *, levels: int, fixup: bool
    ) -> None:
        self._grid = features.permute(1, 2, 0).contiguous()
        self._bias: Tensor | None = None
        if fixup and features.shape[0] == stack.channels:
            # The stages are linear and treat all channels alike, so W may go before them, where
            # there are 256 times fewer pixels.
            weight, bias = (_RESIDUAL * each for each in stack.fixup_proj[1].parameters())
            self._grid = self._grid + self._grid @ weight[:, :, 0, 0].T
            self._bias = bias
        height, width = features.shape[1:]
        self._levels = [
            _make_level(stage, guide, height << i, width << i)
            for i, stage in enumerate(stack.stages[:levels])
        ]
        self.size = (height << levels, width << levels)

    def window(self, rows: slice, columns: slice) -> Tensor:
        """Rows and columns of the upsampled map: (rows, columns, C) float32."""
        features = self._window(rows, columns, len(self._levels))
        return features if self._bias is None else features + self._bias

    def _window(self, rows: slice, columns: slice, level: int) -> Tensor:
        if level == 0:
            return self._grid[rows, columns]
        cell_rows, cell_columns = _halved(rows), _halved(columns)
        cells = self._with_border(cell_rows, cell_columns, level - 1)
        top, bottom = 2 * cell_rows.start, 2 * cell_rows.stop
        left, right = 2 * cell_columns.start, 2 * cell_columns.stop
        kernels = self._levels[level - 1].kernels(slice(top, bottom), slice(left, right))
        features = filter_cells(cells, kernels)
        # One row or column more than wanted where the window begins or ends inside a cell.
        features = features[rows.start - top :, columns.start - left :]
        return features[: rows.stop - rows.start, : columns.stop - columns.start]

    def _with_border(self, rows: slice, columns: slice, level: int) -> Tensor:
        """A window and 3 cells around it: (rows + 6, columns + 6, C), 0 outside the map."""
        height, width = (side << level for side in self._grid.shape[:2])
        top, bottom = max(rows.start - RADIUS, 0), min(rows.stop + RADIUS, height)
        left, right = max(columns.start - RADIUS, 0), min(columns.stop + RADIUS, width)
        inside = self._window(slice(top, bottom), slice(left, right), level)
        border = (
            left - (columns.start - RADIUS),
            columns.stop + RADIUS - right,
            top - (rows.start - RADIUS),
            rows.stop + RADIUS - bottom,
        )
        return F.pad(inside, (0, 0, *border))


def _two_layers(inputs: int, outputs: int) -> nn.Sequential:
    # The identity stands for dropout, so that the weights keep FeatUp's names.
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1), nn.GELU(), nn.Identity(), nn.Conv2d(outputs, outputs, 1)
    )


def _inner(padded: Tensor) -> Tensor:
    return padded[:, RADIUS:-RADIUS, RADIUS:-RADIUS]


def _halved(pixels: slice) -> slice:
    """The cells under a run of pixels."""
    return slice(pixels.start // 2, (pixels.stop + 1) // 2)


def _make_level(stage: JbuStage, guide: Tensor, cell_rows: int, cell_columns: int) -> _Level:
    averaged = F.adaptive_avg_pool2d(guide, (2 * cell_rows, 2 * cell_columns))
    return _Level(
        stage,
        F.pad(averaged, (RADIUS,) * 4, mode="reflect"),
        bicubic_taps(cell_rows).to(guide.device),
        bicubic_taps(cell_columns).to(guide.device),
    )


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


def load_featup(path: Path) -> JbuStack:
    """The upsampler in a Lightning checkpoint of FeatUp, float32, on the CPU.

    The file is a pickle. It is read by torch's own interpreter for such files, which rebuilds
    tensors and plain containers, and refuses to look up, let alone call, anything else.

    Raises:
        UserError: the file is missing, is damaged, holds other objects than tensors and plain
            containers, or is not a JBU checkpoint.
    """
    state = _upsampler_state(path)
    try:
        stack = JbuStack(channels=len(state["fixup_proj.1.weight"]))
        stack.load_state_dict(state)
    except KeyError as error:
        raise UserError(_unfit(path, f"it lacks {error}")) from None
    except RuntimeError as error:
        raise UserError(_unfit(path, one_line(error, 200))) from None
    return stack.eval().requires_grad_(False)


def _upsampler_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path}: no such weights file: fetch the model or correct the path")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # torch's message advises to read the file without this protection.
        raise UserError(
            f"{path}: holds more than tensors, which is not read because it could run code: "
            "take the checkpoint that FeatUp released"
        ) from None
    except Exception as error:  # a damaged file may raise anything
        raise UserError(
            f"{path}: cannot be read ({one_line(error, 200)}): fetch the model again"
        ) from None
    state = content.get("state_dict") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping):
        raise UserError(_unfit(path, "it has no state_dict"))
    return {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in state.items()
        if name.startswith(_PREFIX)
    }


def _unfit(path: Path, reason: str) -> str:
    return f"{path}: not a FeatUp JBU checkpoint ({reason}): take one that FeatUp released"
