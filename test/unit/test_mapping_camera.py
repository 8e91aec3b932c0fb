"""Rays of a calibrated camera, against OpenCV's projection."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from support.mapping_scenes import HEIGHT, LENSES, WIDTH, K, camera_info, model, project

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.mapping.camera_model import CameraModel


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
