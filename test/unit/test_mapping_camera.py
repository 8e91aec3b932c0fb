"""Rays of a calibrated camera, against OpenCV's projection."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from support.mapping_scenes import HEIGHT, LENSES, WIDTH, K, camera_info, model, project

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.mapping.camera_model import CameraModel, fitted
from anomaly_detector_ros.mapping.obstacles import ObstacleSettings, obstacles_from_ground
from anomaly_detector_ros.mapping.poses import mounted, transform


@pytest.mark.parametrize("lens", LENSES)
def test_rays_project_back_to_their_pixels(lens: str):
    rays = model(lens).rays
    assert rays.shape == (HEIGHT, WIDTH, 2)
    assert rays.dtype == np.float32
    rows, columns = np.mgrid[0:HEIGHT:37, 0:WIDTH:41]
    found = rays[rows, columns].reshape(-1, 2)
    assert np.isfinite(found).all()
    pixels = project(lens, np.column_stack([found * 7.0, np.full(len(found), 7.0)]))
    worst = np.abs(pixels - np.stack([columns, rows], -1).reshape(-1, 2)).max()
    assert worst < 0.02, f"worst {worst} px"


@pytest.mark.parametrize("lens", LENSES)
def test_points_projected_by_opencv_lie_on_the_rays(lens: str):
    rng = np.random.default_rng(3)
    points = np.column_stack(
        [rng.uniform(-3, 3, 400), rng.uniform(-1.5, 1.5, 400), rng.uniform(4, 12, 400)]
    )
    pixels = project(lens, points)
    inside = ((pixels > 1) & (pixels < (WIDTH - 2, HEIGHT - 2))).all(axis=1)
    assert inside.sum() > 200
    pixels, points = pixels[inside], points[inside]
    # Between pixel centres the rays are interpolated.
    low = np.floor(pixels).astype(int)
    u, v = (pixels - low).T[..., None]
    rays = model(lens).rays
    column, row = low.T
    at = (
        rays[row, column] * (1 - u) * (1 - v)
        + rays[row, column + 1] * u * (1 - v)
        + rays[row + 1, column] * (1 - u) * v
        + rays[row + 1, column + 1] * u * v
    )
    off = np.linalg.norm(at * points[:, 2:] - points[:, :2], axis=1) / points[:, 2]
    assert off.max() < 1e-4, f"worst {off.max():.2e} of the distance"


def test_own_projection_is_opencvs():
    points = np.array([[0.5, -0.2, 3.0], [-1.0, 0.4, 5.0]])
    for lens in LENSES:
        np.testing.assert_allclose(model(lens).project(points), project(lens, points), atol=1e-9)


def test_binning_and_region_of_interest():
    region = SimpleNamespace(x_offset=200, y_offset=100, width=640, height=400)
    info = camera_info("plumb_bob", binning_x=2, binning_y=4, roi=region)
    cut = CameraModel.from_info(info)
    assert (cut.width, cut.height) == (320, 100)
    # Pixel (u, v) of the image is (200 + 2 u, 100 + 4 v) on the sensor.
    whole = model("plumb_bob").rays
    np.testing.assert_allclose(cut.rays[10, 30], whole[100 + 40, 200 + 60], atol=1e-5)
    np.testing.assert_allclose(cut.rays[99, 319], whole[100 + 396, 200 + 638], atol=1e-5)


def test_corners_that_no_ray_projects_to_are_nan():
    # x (1 + k1 x^2) turns round at x^2 = 1 / 0.9, where x (1 + k1 x^2) is 0.70: 632 px from the
    # centre. Beyond, a picture of such a camera shows nothing.
    info = camera_info("plumb_bob", d=[-0.3, 0.0, 0.0, 0.0, 0.0], height=200)
    rays = CameraModel.from_info(info).rays
    assert np.isnan(rays[0, 0]).all()
    assert np.isnan(rays[0, -1]).all()
    assert np.isfinite(rays[100:, 300:1000]).all()


@pytest.mark.parametrize("k", [[1e-155, 2], [900.0, 1e300], [5e-324, 2]], ids=str)
def test_a_pinhole_sees_no_ray_beyond_any_lens(k: list[float]):
    focal, centre = k
    info = camera_info(d=[], distortion_model="", binning_y=2)
    info.k = [900.0, 0.0, 640.0, 0.0, focal, centre, 0.0, 0.0, 1.0]
    rays = CameraModel.from_info(info).rays
    beyond = np.isnan(rays).all(axis=2)
    assert beyond[100:].all()
    assert (np.abs(rays[~beyond]) < 1e4).all()


def test_a_model_is_equal_while_the_calibration_is():
    assert CameraModel.from_info(camera_info("rational")) == model("rational")
    changed = camera_info("rational", k=[K[0] + 1, *K[1:]])
    assert CameraModel.from_info(changed) != model("rational")


def test_no_distortion_model_without_coefficients_is_a_pinhole():
    for d in ([], [0.0] * 5):
        assert not any(CameraModel.from_info(camera_info(d=d, distortion_model="")).distortion)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"k": [0.0] * 9}, "calibrate"),
        ({"k": [float("nan"), *K[1:]]}, "calibrate"),
        ({"k": [-900.0, *K[1:]]}, "calibrate"),
        ({"k": []}, "calibrate"),
        ({"d": [0.1, 0.2]}, "plumb_bob takes 0 or 4 or 5"),
        ({"d": [0.1, float("inf"), 0.0, 0.0]}, "not finite"),
        ({"distortion_model": "kannala"}, "plumb_bob, rational_polynomial, equidistant"),
        ({"distortion_model": "", "d": [0.1, 0.0, 0.0, 0.0]}, "distortion model ''"),
        ({"distortion_model": "equidistant", "d": []}, "equidistant takes 4"),
        ({"width": 0}, "0x720"),
        (
            {"roi": SimpleNamespace(x_offset=1000, y_offset=0, width=640, height=480)},
            "region of interest",
        ),
    ],
)
def test_bad_camera_info_is_refused_in_one_line(fields, reason: str):
    with pytest.raises(UserError, match="camera_info") as caught:
        CameraModel.from_info(camera_info(**fields))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


RADIAL = [-0.32, 0.11, 0.0012, -0.0007]
RATIONAL = [0.9, 0.3, 4e-4, -3e-4, 0.02, 1.25, 0.5, 0.08]
FISHEYE = [0.05, -0.01, 0.004, -0.001]
PRISM = [*RATIONAL, 1e-3, -2e-3, 5e-4, 1e-3]

# What drivers send for a lens, and OpenCV's coefficients for it; None: no distortion.
DRIVERS: dict[str, tuple[str, list[float], list[float] | None]] = {
    "plumb_bob of 4": ("plumb_bob", RADIAL, RADIAL),
    "plumb_bob of 5": ("plumb_bob", [*RADIAL, -0.02], [*RADIAL, -0.02]),
    "plumb_bob of 8": ("plumb_bob", RATIONAL, RATIONAL),
    "plumb_bob of 12": ("plumb_bob", PRISM, PRISM),
    "plumb_bob of 14": ("plumb_bob", [*PRISM, 0.01, -0.02], [*PRISM, 0.01, -0.02]),
    "plumb_bob of 5 and zeros": ("plumb_bob", [*RADIAL, -0.02] + [0.0] * 9, [*RADIAL, -0.02]),
    "plumb_bob of 4 and zeros": ("plumb_bob", RADIAL + [0.0] * 2, RADIAL),
    "plumb_bob of zeros": ("plumb_bob", [0.0] * 7, None),
    "rational of 8 and zeros": ("rational_polynomial", RATIONAL + [0.0] * 8, RATIONAL),
    "rational of zeros": ("rational_polynomial", [0.0] * 8, None),
    "equidistant of 4": ("equidistant", FISHEYE, FISHEYE),
    "equidistant of 5": ("equidistant", [*FISHEYE, 0.0], FISHEYE),
    "empty name": ("", [0.0] * 5, None),
    "none": ("none", [0.0] * 5, None),
    "None, empty": ("None", [], None),
}
POSE = mounted(1.2, roll=0.02, pitch=0.15)
FEET = np.array([[x, y, 0.0] for x in (3.0, 5.0, 8.0, 12.0) for y in (-0.3, 0.0, 0.3)])


def _seen(driver: str, matrix: np.ndarray) -> np.ndarray:
    """Where OpenCV has the feet in the image of a camera matrix: (N, 2)."""
    name, _, coefficients = DRIVERS[driver]
    to_camera = np.linalg.inv(POSE)
    turned, moved = cv2.Rodrigues(to_camera[:3, :3])[0], to_camera[:3, 3]
    points = FEET.reshape(-1, 1, 3)
    if name == "equidistant":
        lens = cv2.fisheye.projectPoints(points, turned, moved, matrix, np.array(coefficients))
    else:
        lens = cv2.projectPoints(points, turned, moved, matrix, np.array(coefficients or [0.0] * 4))
    return lens[0].reshape(-1, 2)


def _worst_of_range(
    info: Any, size: tuple[int, int], seen: np.ndarray, rectified: bool = False
) -> float:
    """The largest error of the positions of obstacles whose feet are seen there, by their range."""
    camera = CameraModel.from_info(info, size, rectified=rectified)
    assert (camera.height, camera.width) == size
    heat = np.ones(size, np.float32)
    settings = ObstacleSettings(max_range=30.0, voxel_size=0.0, min_pixels=1)
    worst = 0.0
    for foot, (column, row) in zip(FEET, np.rint(seen).astype(int), strict=True):
        mask = np.zeros(size, bool)
        mask[row, column] = True
        found = transform(POSE, obstacles_from_ground(camera, POSE, mask, heat, settings))
        assert len(found) == 1
        worst = max(worst, float(np.linalg.norm(found[0] - foot) / np.linalg.norm(foot)))
    return worst


@pytest.mark.parametrize("driver", DRIVERS)
def test_obstacles_of_each_drivers_camera_info_are_within_two_percent(driver: str):
    name, sent, _ = DRIVERS[driver]
    info = camera_info(distortion_model=name, d=sent)
    seen = _seen(driver, np.array(K).reshape(3, 3))
    assert _worst_of_range(info, (HEIGHT, WIDTH), seen) < 0.02


def _scaled(x: float, y: float, left: float = 0.0, top: float = 0.0) -> np.ndarray:
    matrix = np.array(K).reshape(3, 3)
    matrix[0] = (matrix[0] - [0.0, 0.0, left]) / x
    matrix[1] = (matrix[1] - [0.0, 0.0, top]) / y
    return matrix


def _roi(left: int, top: int, width: int, height: int) -> SimpleNamespace:
    return SimpleNamespace(x_offset=left, y_offset=top, width=width, height=height)


@pytest.mark.parametrize(
    ("fields", "size", "matrix"),
    [
        ({"binning_x": 2, "binning_y": 2}, (360, 640), _scaled(2, 2)),
        ({"binning_x": 2, "binning_y": 2, "k": _scaled(2, 2).ravel()}, (360, 640), _scaled(2, 2)),
        ({"binning_x": 2, "binning_y": 2}, (720, 1280), _scaled(1, 1)),
        ({"roi": _roi(160, 60, 960, 600)}, (600, 960), _scaled(1, 1, 160, 60)),
        ({"roi": _roi(160, 60, 960, 600)}, (720, 1280), _scaled(1, 1)),
        ({"roi": _roi(160, 60, 960, 600), "binning_x": 2, "binning_y": 2}, (300, 480),
         _scaled(2, 2, 160, 60)),
        ({"roi": _roi(0, 0, 1280, 720)}, (720, 1280), _scaled(1, 1)),
        ({}, (360, 640), _scaled(2, 2)),
        ({}, (480, 853), _scaled(1280 / 853, 1.5)),
        ({}, (1440, 2560), _scaled(0.5, 0.5)),
        ({"roi": _roi(160, 60, 960, 600)}, (300, 480), _scaled(2, 2, 160, 60)),
    ],
)  # fmt: skip
def test_obstacles_of_binned_cut_and_scaled_images_are_within_two_percent(fields, size, matrix):
    info = camera_info(distortion_model="plumb_bob", d=RADIAL, **fields)
    assert _worst_of_range(info, size, _seen("plumb_bob of 4", matrix)) < 0.02


@pytest.mark.parametrize(
    "driver", ["plumb_bob of 5", "rational of 8 and zeros", "equidistant of 5"]
)
@pytest.mark.parametrize(
    ("fields", "size", "matrix"),
    [
        ({"p": "new"}, (720, 1280), "new"),
        ({"p": "new", "binning_x": 2, "binning_y": 2}, (360, 640), "new"),
        ({"p": "new", "roi": _roi(160, 60, 960, 600)}, (600, 960), "new"),
        ({"p": "new"}, (360, 640), "new"),
        ({"p": [0.0] * 12}, (720, 1280), "k"),
        ({"p": []}, (720, 1280), "k"),
    ],
)
def test_obstacles_of_rectified_images_whose_distortion_is_not_zero(driver, fields, size, matrix):
    """As image_proc and stereo drivers send image_rect: D is that of the lens, P of the image."""
    name, sent, _ = DRIVERS[driver]
    new = np.array(
        [[700.0, 0.0, 630.0], [0.0, 700.0, 340.0], [0.0, 0.0, 1.0]]
    )  # of no fewer pixels
    if fields["p"] == "new":
        projection = np.column_stack([new, [-84.0, 0.0, 0.0]])  # of the right of two cameras
        fields = {**fields, "p": projection.ravel().tolist()}
    info = camera_info(distortion_model=name, d=sent, **fields)
    left, top = (160, 60) if "roi" in fields else (0, 0)
    scale = 1280 / size[1] if "roi" not in fields else 1.0
    seen_by = new if matrix == "new" else np.array(K).reshape(3, 3)
    seen_by = np.diag([1 / scale, 1 / scale, 1.0]) @ (
        seen_by - [[0, 0, left], [0, 0, top], [0] * 3]
    )
    seen = _seen("none", seen_by)
    assert _worst_of_range(info, size, seen, rectified=True) < 0.02
    if matrix == "new":
        assert _worst_of_range(info, size, seen, rectified=False) > 0.02


@pytest.mark.parametrize("size", [(480, 640), (720, 960), (360, 1280), (719, 1280)])
def test_sizes_that_scaling_does_not_explain_are_refused(size: tuple[int, int]):
    line = f"camera_info is for 1280x720, the image is {size[1]}x{size[0]}"
    with pytest.raises(UserError, match=line):
        CameraModel.from_info(camera_info(), size)
    with pytest.raises(UserError, match=line):
        fitted(camera_info(), size)


def test_camera_info_is_fitted_to_a_scaled_image_whether_calibrated_or_not():
    p = [900.0, 0.0, 655.0, -90.0, 0.0, 890.0, 352.0, 8.0, 0.0, 0.0, 1.0, 0.5]
    info = camera_info(p=p)
    assert fitted(info, (HEIGHT, WIDTH)) == {}
    assert fitted(camera_info(p=p, binning_x=2), (360, 640)) == {}
    changes = fitted(info, (360, 640))
    assert (changes["height"], changes["width"]) == (360, 640)
    np.testing.assert_allclose(changes["k"], _scaled(2, 2).ravel())
    expected = [450.0, 0.0, 327.5, -45.0, 0.0, 445.0, 176.0, 4.0, 0.0, 0.0, 1.0, 0.5]
    np.testing.assert_allclose(changes["p"], expected)
    assert not fitted(camera_info(k=[0.0] * 9, p=[0.0] * 12), (360, 640))["k"].any()
    with pytest.raises(UserError, match="camera_info is for 0x0"):
        fitted(camera_info(width=0, height=0, p=p), (360, 640))


def test_a_fifth_fisheye_coefficient_that_counts_is_refused():
    info = camera_info(distortion_model="equidistant", d=[*FISHEYE, 0.3])
    with pytest.raises(UserError, match="5 distortion coefficients, equidistant takes 4"):
        CameraModel.from_info(info)
