"""Features of an image in square tiles, each at the size that the network was trained with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.features.networks import FeatureExtractor
from anomaly_detector_ros.features.preprocessing import check_input_size, network_size, resize


class TiledFeatures:
    """One feature map put together from square tiles.

    The image is resized so that its sides are whole numbers of cells, the aspect ratio kept to
    half a cell. Square tiles of ``tile_size`` pixels, evenly spaced, cover it: the fewest that
    do. A tile starts at a whole cell, so the tiles' maps fit into one grid without resampling,
    and where tiles overlap their features are averaged, which softens the seams. A plain
    partition into tiles would either leave a rest or squeeze the image by up to a third.

    The paper's tiles are also squares brought to 224 x 224; the code that cuts them is not public.

    Args:
        extractor: sees ``tile_size`` x ``tile_size`` pixels at a time.
        tile_size: side of a tile in pixels, a multiple of the extractor's stride.
        input_size: (height, width) to which the image is brought before it is cut, or its
            shorter side alone; multiples of the stride, at least ``tile_size``. The shorter side
            at ``tile_size`` gives one row (or column) of the largest possible tiles, at twice
            that tiles show the image twice as large, four times as many.

    Raises:
        UserError: sizes that don't fit together.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        *,
        tile_size: int = 224,
        input_size: int | tuple[int, int] | None = None,
    ) -> None:
        self.channels, self.stride = extractor.channels, extractor.stride
        self.tile_size = tile_size
        self.input_size = tile_size if input_size is None else input_size
        _check_sizes(tile_size, self.input_size, self.stride)
        self._extractor = extractor

    def extract(self, images: Tensor) -> Tensor:
        """Features of images (B, 3, H, W) in [-1, 1], of any size: (B, channels, h, w) float32."""
        size = network_size((images.shape[-2], images.shape[-1]), self.input_size, self.stride)
        images = resize(images, size)
        grid = (size[0] // self.stride, size[1] // self.stride)
        cells = self.tile_size // self.stride
        total: Tensor | None = None
        count: Tensor | None = None
        for top, left in tile_corners(grid, cells):
            y, x = top * self.stride, left * self.stride
            tile = images[..., y : y + self.tile_size, x : x + self.tile_size]
            maps = self._extractor.extract(tile)
            if total is None or count is None:
                total = maps.new_zeros((*maps.shape[:2], *grid))
                count = maps.new_zeros(grid)
            total[..., top : top + cells, left : left + cells] += maps
            count[top : top + cells, left : left + cells] += 1
        assert total is not None
        assert count is not None
        return total / count


class Squares:
    """Square tiles of an image that are compared each by itself, before they are put together.

    They lie as those of `TiledFeatures` do, to the pixel. So every upsampled feature comes from
    one tile alone, and where tiles overlap their distances are averaged rather than their features.

    Args:
        tile_size: side of a square in pixels.
        input_size: see `TiledFeatures`.

    Raises:
        UserError: sizes that don't fit together.
    """

    def __init__(self, tile_size: int, input_size: int | tuple[int, int]) -> None:
        _check_sizes(tile_size, input_size, 1)
        self.size = (tile_size, tile_size)
        self._input_size = input_size

    def cut(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Images (B, 3, h, w) -> their n squares (n, B, 3, side, side).

        Args:
            images: of any size; resized once.
            size: (height, width) of what they show, which says where the squares lie.
        """
        canvas, side = network_size(size, self._input_size, 1), self.size[0]
        images = resize(images, canvas)
        corners = tile_corners(canvas, side)
        return torch.stack([images[..., y : y + side, x : x + side] for y, x in corners])

    def join(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Maps (M, side, side), one for each square of an image of ``size`` -> (M, *size)."""
        canvas, side = network_size(size, self._input_size, 1), self.size[0]
        total, count = maps[0].new_zeros((len(maps[0]), *canvas)), maps[0].new_zeros(canvas)
        for (y, x), each in zip(tile_corners(canvas, side), maps, strict=True):
            total[:, y : y + side, x : x + side] += each
            count[y : y + side, x : x + side] += 1
        return resize((total / count)[:, None], size)[:, 0]


def _check_sizes(tile_size: int, input_size: int | tuple[int, int], stride: int) -> None:
    if tile_size < stride or tile_size % stride:
        raise UserError(f"tile_size {tile_size}: take a multiple of {stride} pixels")
    check_input_size(input_size, stride)
    sides = (input_size,) if isinstance(input_size, int) else input_size
    if min(sides) < tile_size:
        raise UserError(f"input_size {min(sides)}: take at least the tile_size {tile_size}")


def tile_corners(grid: tuple[int, int], tile: int) -> Iterator[tuple[int, int]]:
    """Top left corners (row, column) of the fewest squares of side ``tile`` that cover a grid.

    Rows first; the spacing is even to one cell. All in cells; no side is shorter than ``tile``.
    """
    for top in _starts(grid[0], tile):
        for left in _starts(grid[1], tile):
            yield top, left


def _starts(length: int, tile: int) -> list[int]:
    gaps = -(-length // tile) - 1
    return (
        [(i * (length - tile) * 2 + gaps) // (2 * gaps) for i in range(gaps + 1)] if gaps else [0]
    )
