"""Positions of anomalies in scenes whose true positions are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.mapping_scenes import HEIGHT, LENSES, WIDTH, board_outline, draw, model, project

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.mapping.ground import ground_depth
from anomaly_detector_ros.mapping.obstacles import (
    ObstacleSettings,
    find_blobs,
    free_ground,
    obstacles_from_depth,
    obstacles_from_ground,
    organised,
    thin,
    things,
)
from anomaly_detector_ros.mapping.poses import from_numbers, from_quaternion, mounted, transform

POSE = mounted(1.2, roll=0.03, pitch=0.18)
# x, y, width, height of boards that stand on the ground ahead of the robot, metres.
BOARDS = [(3.5, 0.4, 0.5, 1.6), (6.0, -1.8, 0.6, 0.8), (8.0, 2.2, 0.4, 2.5), (12.0, 0.5, 1.0, 1.0)]
SETTINGS = ObstacleSettings(max_range=20.0, voxel_size=0.05)
HEAT = np.full((HEIGHT, WIDTH), 0.9, np.float32)


def distance_to_board(points: np.ndarray, board: tuple[float, float, float, float]) -> np.ndarray:
    """How far points of the base frame are from a board, over the ground, metres."""
    x, y, width, _ = board
    aside = np.maximum(np.abs(points[:, 1] - y) - width / 2, 0.0)
    return np.hypot(points[:, 0] - x, aside)


def cut_off(mask: np.ndarray) -> bool:
    """Whether the image's upper edge cuts something off."""
    return bool(mask[0].any())


@pytest.mark.parametrize("lens", LENSES)
def test_ground_contact_gives_positions_within_two_percent(lens: str):
    worst, covered = 0.0, 0
    for board in BOARDS:
        mask = draw(lens, POSE, board_outline(*board))
        points = obstacles_from_ground(model(lens), POSE, mask, HEAT, SETTINGS)
        assert points.dtype == np.float32
        found = transform(POSE, points)
        share = distance_to_board(found, board).max() / np.hypot(board[0], board[1])
        worst, covered = max(worst, share), covered + len(found)
        # From foot to top, where the image shows it, and as wide as it is.
        assert -0.02 < found[:, 2].min() < 0.1
        assert found[:, 2].max() < board[3] + 0.05
        assert cut_off(mask) or found[:, 2].max() > board[3] - 0.05
        assert np.ptp(found[:, 1]) == pytest.approx(board[2], abs=0.1)
    print(f"{lens}: worst error {100 * worst:.2f}% of range, {covered} points")
    assert worst < 0.02, f"worst error {100 * worst:.2f}% of range"


@pytest.mark.parametrize("lens", LENSES)
def test_ground_points_projected_by_opencv_come_back_within_two_percent(lens: str):
    """Single pixels at rounded places: what half a pixel is worth on the ground, too."""
    x, y = (grid.reshape(-1) for grid in np.meshgrid(np.linspace(2.5, 14, 40), np.arange(-4, 4.1)))
    true = np.column_stack([x, y, np.zeros_like(x)])
    pixels = np.rint(project(lens, true, POSE)).astype(int)
    inside = ((pixels >= 0) & (pixels < (WIDTH, HEIGHT))).all(axis=1)
    assert inside.sum() > 100
    true, pixels = true[inside], pixels[inside]
    rays = model(lens).rays[pixels[:, 1], pixels[:, 0]]
    depth = ground_depth(rays, POSE, 0.0, 50.0)
    found = transform(POSE, np.column_stack([rays, np.ones(len(rays))]) * depth[:, None])
    error = np.linalg.norm(found - true, axis=1) / np.linalg.norm(true, axis=1)
    print(f"{lens}: worst error {100 * error.max():.2f}% of range")
    assert error.max() < 0.02, f"worst error {100 * error.max():.2f}% of range"


def test_upper_pixels_do_not_land_behind_a_standing_thing():
    board = BOARDS[1]
    mask = draw("plumb_bob", POSE, board_outline(*board))
    flat = ObstacleSettings(max_range=50.0, standing=False)
    spread = transform(POSE, obstacles_from_ground(model("plumb_bob"), POSE, mask, HEAT, flat))
    assert distance_to_board(spread, board).max() > 5.0  # 0.8 m high: as far behind as 3 to 1
    assert np.abs(spread[:, 2]).max() < 1e-3


def test_each_of_two_things_in_one_column_keeps_its_own_contact():
    near, far = (4.0, 0.0, 0.5, 0.3), (11.0, 0.0, 0.6, 0.6)
    masks = [draw("pinhole", POSE, board_outline(*board)) for board in (near, far)]
    assert (masks[0].any(axis=0) & masks[1].any(axis=0)).any()
    points = obstacles_from_ground(model("pinhole"), POSE, masks[0] | masks[1], HEAT, SETTINGS)
    found = transform(POSE, points)
    at_near, at_far = (distance_to_board(found, board) for board in (near, far))
    assert (np.minimum(at_near / near[0], at_far / far[0]) < 0.02).all()
    assert (at_near < 0.1).any()
    assert (at_far < 0.3).any()


def test_above_the_horizon_and_beyond_range_are_left_out():
    level = mounted(1.2)
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[100:352, 300:900] = True  # the horizon is at row cy = 352
    assert len(obstacles_from_ground(model("pinhole"), level, mask, HEAT, SETTINGS)) == 0
    board = draw("pinhole", level, board_outline(12.0, 0.0, 1.0, 1.0))
    near = ObstacleSettings(max_range=11.0)
    assert len(obstacles_from_ground(model("pinhole"), level, board, HEAT, near)) == 0
    assert len(obstacles_from_ground(model("pinhole"), level, board, HEAT, SETTINGS)) > 0


def test_a_camera_under_the_ground_sees_none_of_it():
    board = draw("pinhole", POSE, board_outline(*BOARDS[0]))
    below = ObstacleSettings(ground_z=1.5)
    assert len(obstacles_from_ground(model("pinhole"), POSE, board, HEAT, below)) == 0


def test_ground_below_the_base_frame():
    board = BOARDS[1]
    mask = draw("pinhole", POSE, board_outline(*board))
    lifted = POSE.copy()
    lifted[2, 3] -= 0.35  # the same camera in a base frame 0.35 m above the ground
    settings = ObstacleSettings(ground_z=-0.35, max_range=20.0)
    found = transform(lifted, obstacles_from_ground(model("pinhole"), lifted, mask, HEAT, settings))
    assert distance_to_board(found, board).max() < 0.02 * board[0]
    assert found[:, 2].min() == pytest.approx(-0.35, abs=0.05)


@pytest.mark.parametrize("lens", LENSES)
def test_depth_gives_the_points_themselves(lens: str):
    rng = np.random.default_rng(1)
    true = np.column_stack([rng.uniform(-2, 2, 60), rng.uniform(-1, 1, 60), rng.uniform(3, 9, 60)])
    pixels = np.rint(project(lens, true)).astype(int)
    mask, depth = np.zeros((HEIGHT, WIDTH), bool), np.full((HEIGHT, WIDTH), np.nan, np.float32)
    mask[pixels[:, 1], pixels[:, 0]] = True
    depth[pixels[:, 1], pixels[:, 0]] = true[:, 2]
    settings = ObstacleSettings(voxel_size=0.0, min_pixels=1)
    found = obstacles_from_depth(model(lens), depth, mask, HEAT, settings)
    assert len(found) == 60
    gaps = np.linalg.norm(found[:, None, :3] - true[None], axis=2).min(axis=1)
    assert (gaps / np.linalg.norm(found[:, :3], axis=1)).max() < 1e-3  # half a pixel
    np.testing.assert_allclose(found[:, 3], 0.9)


def test_depth_without_measurement_or_out_of_range_is_left_out():
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[300:310, 600:620] = True
    depth = np.full((HEIGHT, WIDTH), 4.0, np.float32)
    settings = ObstacleSettings(voxel_size=0.0, max_range=5.0)
    assert len(obstacles_from_depth(model("pinhole"), depth, mask, HEAT, settings)) == 200
    depth[300:305] = np.nan
    depth[305:307] = 5.1
    assert len(obstacles_from_depth(model("pinhole"), depth, mask, HEAT, settings)) == 60


def test_speckle_is_left_out():
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[500:505, 100:105] = True  # 25 pixels
    mask[600:604, 200:206] = True  # 24 pixels
    mask[10, 10] = mask[11, 11] = True  # 8-connected
    sizes = {n: len(find_blobs(mask, ObstacleSettings(min_pixels=n)).pixels) for n in (1, 3, 25)}
    assert sizes == {1: 51, 3: 49, 25: 25}
    assert len(find_blobs(mask, ObstacleSettings(min_pixels=26)).pixels) == 0
    empty = np.zeros_like(mask)
    for pose in (POSE, mounted(1.0)):
        assert obstacles_from_ground(model("pinhole"), pose, empty, HEAT, SETTINGS).shape == (0, 4)


def test_of_many_pixels_outlines_stay_whole_and_nothing_thin_vanishes():
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[360:, 100:900] = True  # 288,000 pixels, down to the image's edge
    mask[400:631, 1001] = True  # one column, at an odd place
    taken = np.zeros_like(mask)
    blobs = find_blobs(mask, ObstacleSettings())
    taken.flat[blobs.pixels] = True
    assert taken.sum() < 40_000
    assert not (taken & ~mask).any()
    assert taken[-1, 100:900].all()
    assert taken[360:, 100].all()
    assert taken[400:631, 1001].all()
    assert taken[370:710, 110:890].sum() > 10_000
    every = find_blobs(mask, ObstacleSettings(voxel_size=0.0))
    assert len(every.pixels) == mask.sum()


@pytest.mark.parametrize("roll", [0.6, 1.5])
def test_a_camera_mounted_on_its_side(roll: float):
    pose = mounted(1.2, roll=roll, pitch=0.1)
    board = (6.0, 0.3, 0.5, 0.8)
    mask = draw("plumb_bob", pose, board_outline(*board))
    found = transform(pose, obstacles_from_ground(model("plumb_bob"), pose, mask, HEAT, SETTINGS))
    assert distance_to_board(found, board).max() < 0.02 * board[0]
    assert found[:, 2].max() == pytest.approx(board[3], abs=0.05)


def test_a_camera_that_looks_backwards():
    around = from_quaternion((-0.3, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0))
    pose = around @ POSE
    outline = board_outline(*BOARDS[1])
    mask = draw("pinhole", pose, transform(around, outline))
    found = transform(pose, obstacles_from_ground(model("pinhole"), pose, mask, HEAT, SETTINGS))
    back = transform(np.linalg.inv(around), found)
    assert distance_to_board(back, BOARDS[1]).max() < 0.02 * BOARDS[1][0]


def test_free_ground_is_where_the_ground_is():
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[:, 640:] = True
    found = transform(POSE, free_ground(model("plumb_bob"), POSE, mask, None, SETTINGS))
    assert np.abs(found[:, 2]).max() < 1e-3
    assert np.linalg.norm(found - POSE[:3, 3], axis=1).max() <= SETTINGS.max_range * 1.001
    assert len(found) > 5000
    assert np.median(found[:, 1]) > 0.3  # the right half is anomalous


def test_free_ground_by_depth_is_what_is_flat():
    rays = model("pinhole").rays
    depth = ground_depth(rays.reshape(-1, 2), POSE, 0.0, 30.0).reshape(HEIGHT, WIDTH)
    wall = np.fmin(depth, 5.0)  # a nominal hedge 5 m ahead hides the rest
    nothing = np.zeros((HEIGHT, WIDTH), bool)
    found = transform(POSE, free_ground(model("pinhole"), POSE, nothing, wall, SETTINGS))
    assert np.abs(found[:, 2]).max() <= 0.201
    assert found[:, 0].max() < 5.5
    blind = transform(POSE, free_ground(model("pinhole"), POSE, nothing, None, SETTINGS))
    assert blind[:, 0].max() > 15.0


def test_organised_cloud_has_a_point_per_pixel():
    depth = np.full((HEIGHT, WIDTH), 2.0, np.float32)
    depth[0, 0] = np.nan
    mask = draw("pinhole", POSE, board_outline(*BOARDS[1]))
    cloud = organised(model("plumb_bob"), None, depth, mask, HEAT, SETTINGS)
    assert cloud.shape == (HEIGHT, WIDTH, 4)
    assert np.isnan(cloud[0, 0, :3]).all()
    pixels = project("plumb_bob", cloud[300:302, 500:502, :3].reshape(-1, 3))
    np.testing.assert_allclose(pixels, [[500, 300], [501, 300], [500, 301], [501, 301]], atol=0.02)
    ground = organised(model("pinhole"), POSE, None, mask, HEAT, SETTINGS)
    seen = np.isfinite(ground[..., 2])
    assert not seen[:150].any()  # above the horizon
    assert np.abs(transform(POSE, ground[seen & ~mask])[:, 2]).max() < 1e-3
    board = transform(POSE, ground[mask])
    assert distance_to_board(board, BOARDS[1]).max() < 0.02 * BOARDS[1][0]


def test_thinning_keeps_one_point_and_the_highest_intensity_of_each_cube():
    rng = np.random.default_rng(0)
    points = np.column_stack([rng.uniform(-2, 2, (5000, 3)), rng.random(5000)]).astype(np.float32)
    points[1:4000:2, :3] = points[0:3999:2, :3]  # neighbours in one cube
    kept = thin(points, 0.5)
    cubes: dict[tuple[int, ...], float] = {}
    for *xyz, value in points:
        cube = tuple(int(np.floor(c * np.float32(2.0))) for c in xyz)
        cubes[cube] = max(cubes.get(cube, 0.0), value)
    assert {tuple(np.floor(p[:3] * 2).astype(int)): p[3] for p in kept} == cubes
    assert thin(points, 0.0) is points
    assert len(thin(points[:0], 0.1)) == 0


def test_poses():
    down = mounted(2.0, pitch=np.pi / 2)
    np.testing.assert_allclose(down[:3, :3] @ (0, 0, 1), (0, 0, -1), atol=1e-12)
    rolled = mounted(2.0, roll=0.1)  # clockwise as the camera sees it: its right side is lower
    assert (rolled[:3, :3] @ (1, 0, 0))[2] < 0
    np.testing.assert_allclose(from_numbers(down.reshape(-1).tolist()), down)
    half = np.sqrt(0.5)
    about_z = from_quaternion((1, 2, 3), (0, 0, half, half))
    np.testing.assert_allclose(transform(about_z, np.array([[1.0, 0.0, 0.0]])), [[1, 3, 3]])


@pytest.mark.parametrize(
    "numbers",
    [[1.0] * 15, [1.0] * 16, [float("nan")] * 16, np.diag([1, 1, -1, 1]).ravel().tolist()],
)
def test_what_is_no_rigid_transform_is_refused(numbers):
    with pytest.raises(UserError, match="transform"):
        from_numbers(numbers)


def test_things_are_the_boards_with_their_distance_and_size():
    boards = BOARDS[1:3]
    masks = [draw("pinhole", POSE, board_outline(*board)) for board in boards]
    speck = np.zeros((HEIGHT, WIDTH), bool)
    speck[-3:, :3] = True
    mask = masks[0] | masks[1] | speck
    heat = np.where(masks[1], 0.5, 1.0).astype(np.float32)
    cloud = organised(model("pinhole"), POSE, None, mask, heat, SETTINGS)
    found = things(cloud, mask, SETTINGS)
    assert [thing.score for thing in found] == pytest.approx([1.0, 0.5], abs=0.02)
    for thing, (x, y, width, height) in zip(found, boards, strict=True):
        centre = transform(POSE, thing.centre[None])[0]
        assert centre[:2] == pytest.approx([x, y], abs=0.2)
        assert thing.size[0] == pytest.approx(width, abs=0.15)
        assert thing.size[1] == pytest.approx(height, abs=0.35)
        assert thing.distance == pytest.approx(np.hypot(x, y), abs=0.4)
    near = things(cloud, mask, replace(SETTINGS, max_range=7.0))
    assert len(near) == 1


def test_nothing_has_no_things():
    empty = np.zeros((HEIGHT, WIDTH), bool)
    assert things(np.full((HEIGHT, WIDTH, 4), np.nan, np.float32), empty, SETTINGS) == []
