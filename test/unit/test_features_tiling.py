from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.features.networks import NetworkFeatures
from anomaly_detector_ros.features.preprocessing import resize
from anomaly_detector_ros.features.rgb import RgbFeatures
from anomaly_detector_ros.features.tiling import Squares, TiledFeatures, tile_corners


class PatchMeans(NetworkFeatures):
    """Mean colour of 4 x 4 patches and, in a fourth channel, the mean of all that it sees."""

    def __init__(self, input_size: int | tuple[int, int]) -> None:
        super().__init__(
            torch.nn.AvgPool2d(4),
            channels=4,
            stride=4,
            input_size=input_size,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            device="cpu",
            dtype=torch.float32,
        )

    def _maps(self, pixels: torch.Tensor) -> torch.Tensor:
        means = self._network(pixels)
        seen = means.mean(dim=(1, 2, 3), keepdim=True).expand_as(means[:, :1])
        return torch.cat([means, seen], dim=1)


@pytest.mark.parametrize("grid", [(14, 14), (14, 15), (17, 43), (28, 14), (29, 100)])
def test_the_fewest_tiles_cover_every_cell_evenly(grid: tuple[int, int]) -> None:
    covered = torch.zeros(grid, dtype=torch.int)
    corners = list(tile_corners(grid, 14))
    for top, left in corners:
        assert 0 <= top <= grid[0] - 14
        assert 0 <= left <= grid[1] - 14
        covered[top : top + 14, left : left + 14] += 1
    assert covered.min() >= 1
    assert len(corners) == -(-grid[0] // 14) * -(-grid[1] // 14)
    steps = torch.tensor(sorted({left for _, left in corners})).diff()
    assert len(steps) == 0 or steps.max() - steps.min() <= 1


def test_the_papers_image_sizes() -> None:
    def count(size: tuple[int, int]) -> int:
        return len(list(tile_corners((size[0] // 16, size[1] // 16), 14)))

    assert count((224, 288)) == 2  # 550 x 688 with the shorter side at 224
    assert count((448, 560)) == 6
    assert count((896, 1120)) == 20  # an exact partition: no two tiles overlap


def test_where_one_tile_suffices_it_is_the_whole_image() -> None:
    images = torch.rand(2, 3, 50, 50) * 2 - 1
    tiled = TiledFeatures(PatchMeans((16, 16)), tile_size=16)
    assert torch.equal(tiled.extract(images), PatchMeans((16, 16)).extract(images))


def test_a_constant_image_has_constant_features() -> None:
    tiled = TiledFeatures(PatchMeans((16, 16)), tile_size=16, input_size=24)
    maps = tiled.extract(torch.full((1, 3, 37, 91), 0.25))
    assert maps.shape == (1, 4, 6, 15)
    torch.testing.assert_close(maps, torch.full_like(maps, 0.25))


@pytest.mark.parametrize("size", [(31, 53), (53, 31), (40, 40), (7, 64)])
@pytest.mark.parametrize("input_size", [None, 20, (24, 36)])
def test_tiles_are_put_back_where_they_were(
    size: tuple[int, int], input_size: int | tuple[int, int] | None
) -> None:
    images = torch.rand(2, 3, *size) * 2 - 1
    tiled = TiledFeatures(PatchMeans((16, 16)), tile_size=16, input_size=input_size)
    maps = tiled.extract(images)
    canvas = resize(images, (maps.shape[-2] * 4, maps.shape[-1] * 4))
    torch.testing.assert_close(maps[:, :3], F.avg_pool2d(canvas, 4))


def test_tiles_of_colours_are_the_resized_image() -> None:
    images = torch.rand(1, 3, 33, 57) * 2 - 1
    tiled = TiledFeatures(RgbFeatures(), tile_size=10, input_size=(25, 41))
    torch.testing.assert_close(tiled.extract(images), resize(images, (25, 41)))


def test_overlapping_tiles_are_averaged() -> None:
    image = torch.zeros(1, 3, 4, 6)
    image[..., 4:] = 0.9
    tiled = TiledFeatures(PatchMeans((4, 4)), tile_size=4, input_size=(4, 8))
    # Two tiles side by side share nothing: each has its own mean.
    canvas = resize(image, (4, 8))
    apart = tiled.extract(image)[0, 3, 0]
    torch.testing.assert_close(apart, canvas[0, 0].unflatten(1, (2, 4)).mean(dim=(0, 2)))
    # Three cells in tiles of two: the middle one is seen by both.
    image = torch.arange(3.0).repeat_interleave(4).expand(1, 3, 8, 12) / 4
    maps = TiledFeatures(PatchMeans((8, 8)), tile_size=8, input_size=(8, 12)).extract(image)
    torch.testing.assert_close(maps[0, 3, 0], torch.tensor([0.125, 0.25, 0.375]))


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="tile_size 18: take a multiple of 4"):
        TiledFeatures(PatchMeans((16, 16)), tile_size=18)
    with pytest.raises(UserError, match="input_size 8: take at least the tile_size 16"):
        TiledFeatures(PatchMeans((16, 16)), tile_size=16, input_size=(8, 32))
    with pytest.raises(UserError, match="multiples of 4"):
        TiledFeatures(PatchMeans((16, 16)), tile_size=16, input_size=18)


def test_squares_are_cut_and_their_maps_averaged_where_they_overlap() -> None:
    # 2 x 3 pixels in squares of two: columns 0 to 1 and 1 to 2.
    image = torch.arange(6.0).view(1, 1, 2, 3).expand(1, 3, 2, 3)
    squares = Squares(2, (2, 3))
    cut = squares.cut(image, (2, 3))
    assert cut[:, 0, 0].tolist() == [[[0, 1], [3, 4]], [[1, 2], [4, 5]]]
    left, right = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.full((1, 2, 2), 10.0)
    assert squares.join([left, right], (2, 3)).tolist() == [[[1, 6, 10], [3, 7, 10]]]


def test_squares_lie_by_the_shape_of_the_camera_image_whatever_is_cut() -> None:
    squares = Squares(224, 448)
    for picture in (torch.zeros(1, 3, 176, 216), torch.zeros(1, 3, 550, 688)):
        assert squares.cut(picture, (550, 688)).shape == (6, 1, 3, 224, 224)
    assert squares.join([torch.ones(2, 224, 224)] * 6, (550, 688)).shape == (2, 550, 688)
    with pytest.raises(UserError, match="input_size 200: take at least the tile_size 224"):
        Squares(224, 200)
