"""From pixels to rays: the camera's calibration, lens distortion included."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np

from anomaly_detector_ros.errors import UserError

FISHEYE = "equidistant"
DISTORTION_MODELS: dict[str, tuple[int, ...]] = {
    "plumb_bob": (0, 4, 5, 8, 12, 14),
    "rational_polynomial": (0, 4, 5, 8, 12, 14),
    FISHEYE: (4,),
}
"""Accepted `sensor_msgs/CameraInfo.distortion_model` and the numbers of coefficients each has.

Those of plumb_bob are the first of rational_polynomial, and drivers send either under both names.
"""
_NO_MODEL = ("", "none", "pinhole")

# Until a ray projects within so many pixels of where it came from.
_STOP = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 60, 1e-3)
_REACHED = 0.1
_STEEPEST = 1e4
_BLOCK_ROWS = 128

# OpenCV 5 has one function where OpenCV 4 has two, of which this one takes a stopping criterion.
_undistort = getattr(cv2, "undistortPointsIter", cv2.undistortPoints)


@dataclass(frozen=True)
class CameraModel:
    """A calibrated camera, as its images come: binned and cut out, rectified or not.

    Attributes:
        width, height: size of the image in pixels.
        intrinsics: fx, fy, cx, cy in pixels of that image.
        distortion: OpenCV's coefficients, k1 k2 p1 p2 k3 ... or, for a fisheye lens, k1 to k4.
        fisheye: whether the lens follows the equidistant model.
    """

    width: int
    height: int
    intrinsics: tuple[float, float, float, float]
    distortion: tuple[float, ...] = ()
    fisheye: bool = False

    @classmethod
    def from_info(
        cls, info: Any, size: tuple[int, ...] | None = None, *, rectified: bool = False
    ) -> CameraModel:
        """The model of a `sensor_msgs/CameraInfo`; only its fields are read.

        K is of the whole sensor: a region of interest moves the principal point, binning then
        divides the lengths, as in image_geometry. Three things differ with some drivers:

        - The image is as large as the sensor in spite of binning or a region: then so is K.
        - K is binned already, which shows where only then its centre is about the sensor's.
        - The image is smaller or larger, in both directions alike: it was scaled, and K is.

        Args:
            info: the message.
            size: height and width of the image; None: those the message states.
            rectified: the image is, so that P counts and no distortion; K, where P is 0.

        Raises:
            UserError: not calibrated, numbers that are not finite, an unknown distortion model or
                the wrong number of coefficients, an impossible region of interest, a size that
                scaling does not explain.
        """
        distortion, fisheye = ((), False) if rectified else _distortion(info)
        k = [float(value) for value in info.k]
        if rectified and any(info.p):
            k = [float(info.p[index]) for index in (0, 1, 2, 4, 5, 6, 8, 9, 10)]
        if len(k) != 9 or not all(map(math.isfinite, k)) or k[0] <= 0 or k[4] <= 0:
            raise UserError(
                "camera_info holds no calibration (focal length in K is not positive): calibrate "
                "the camera"
            )
        left, top, width, height = _region(info)
        bin_x, bin_y = max(1, int(info.binning_x)), max(1, int(info.binning_y))
        if size == (info.height, info.width):
            left, top, height, width, bin_x, bin_y = 0, 0, *size, 1, 1
        elif _binned_already(k, info):
            k[0], k[2], k[4], k[5] = k[0] * bin_x, k[2] * bin_x, k[4] * bin_y, k[5] * bin_y
        width, height = width // bin_x, height // bin_y
        ratio = _ratio((height, width), size or (height, width))
        x, y = bin_x * ratio, bin_y * ratio
        intrinsics = (k[0] / x, k[4] / y, (k[2] - left) / x, (k[5] - top) / y)
        height, width = size or (height, width)
        return cls(width, height, intrinsics, distortion, fisheye)

    @property
    def matrix(self) -> np.ndarray:
        """The camera matrix, float64 (3, 3)."""
        fx, fy, cx, cy = self.intrinsics
        return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])

    @cached_property
    def rays(self) -> np.ndarray:
        """The viewing direction of every pixel's centre: float32 (H, W, 2), x/z and y/z.

        In the optical frame: x right, y down, z forward. NaN where no direction in front of the
        camera projects to the pixel, as in the corners beyond a strong distortion's turning point.
        Computed once, which takes some tenths of a second at 1280x720.
        """
        rays = np.empty((self.height, self.width, 2), np.float32)
        columns = np.arange(self.width, dtype=np.float64)
        # In blocks, for the sake of memory: OpenCV works in double precision.
        for top in range(0, self.height, _BLOCK_ROWS):
            rows = np.arange(top, min(top + _BLOCK_ROWS, self.height), dtype=np.float64)
            pixels = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 1, 2)
            block = self._directions(pixels)
            rays[top : top + len(rows)] = block.reshape(len(rows), self.width, 2)
        rays.flags.writeable = False
        return rays

    def project(self, points: np.ndarray) -> np.ndarray:
        """Where points of the optical frame, (N, 3) with z > 0, appear: float64 (N, 2), u and v."""
        points = np.asarray(points, np.float64).reshape(-1, 1, 3)
        zero, coefficients = np.zeros(3), np.array(self.distortion)
        if self.fisheye:
            pixels, _ = cv2.fisheye.projectPoints(points, zero, zero, self.matrix, coefficients)
        else:
            pixels, _ = cv2.projectPoints(points, zero, zero, self.matrix, coefficients)
        return pixels.reshape(-1, 2)

    def _directions(self, pixels: np.ndarray) -> np.ndarray:
        """Rays (N, 2) of pixels (N, 1, 2), NaN where there is none."""
        if not any(self.distortion) and not self.fisheye:
            fx, fy, cx, cy = self.intrinsics
            with np.errstate(all="ignore"):
                rays = (pixels.reshape(-1, 2) - (cx, cy)) / (fx, fy)
            rays[~_usable(rays)] = np.nan
            return rays
        coefficients = np.array(self.distortion)
        if self.fisheye:
            found = cv2.fisheye.undistortPoints(pixels, self.matrix, coefficients, criteria=_STOP)
        else:
            found = _undistort(pixels, self.matrix, coefficients, R=None, P=None, criteria=_STOP)
        rays = np.asarray(found, np.float64).reshape(-1, 2)
        # The iteration may end anywhere: only what projects back to its pixel is a direction.
        usable = _usable(rays)
        rays[~usable] = 0.0
        back = self.project(np.column_stack([rays, np.ones(len(rays))]))
        usable &= (np.abs(back - pixels.reshape(-1, 2)) < _REACHED).all(axis=1)
        rays[~usable] = np.nan
        return rays


def _usable(rays: np.ndarray) -> np.ndarray:
    """Which rays (N, 2) are finite and no further from the axis than any lens sees: bool (N,)."""
    usable: np.ndarray = (np.abs(rays) < _STEEPEST).all(axis=1)
    return usable


def fitted(info: Any, size: tuple[int, ...]) -> dict[str, Any]:
    """The fields of a `sensor_msgs/CameraInfo` that change so that it is of an image's size.

    None do where it fits. With binning or a region of interest the image is smaller than the
    calibrated sensor, and any fits. Else the image was scaled, so K and P are.

    Args:
        info: the message, calibrated or not.
        size: height and width of the image.

    Raises:
        UserError: another size, in which scaling cannot result.
    """
    whole = max(info.binning_x, info.binning_y) <= 1 and not (info.roi.width or info.roi.height)
    if not whole or size == (info.height, info.width):
        return {}
    ratio = _ratio((info.height, info.width), size)
    scale = np.array([1 / ratio, 1 / ratio, 1.0])
    k = np.asarray(info.k, np.float64) * np.repeat(scale, 3)
    p = np.asarray(info.p, np.float64) * np.repeat(scale, 4)
    return {"height": size[0], "width": size[1], "k": k, "p": p}


def _ratio(calibrated: tuple[int, ...], size: tuple[int, ...]) -> float:
    """By how much an image was scaled down, given (height, width) before and after.

    Another ratio of the sides is refused: the image may be cut anywhere.
    """
    ratio = calibrated[1] / size[1]
    # A size is whole, so that it may be off by up to one pixel.
    if ratio <= 0 or abs(calibrated[0] - ratio * size[0]) >= max(ratio, 1.0):
        raise UserError(
            f"camera_info is for {calibrated[1]}x{calibrated[0]}, the image is "
            f"{size[1]}x{size[0]}, not the same scaled: correct the camera driver's calibration"
        )
    return ratio


def _binned_already(k: list[float], info: Any) -> bool:
    """Whether only of a binned image the principal point is about its centre, in both axes."""
    axes = (
        (float(info.width), k[2], int(info.binning_x)),
        (float(info.height), k[5], int(info.binning_y)),
    )
    return all(
        binning > 1 and abs(length / 2 - centre * binning) < abs(length / 2 - centre) / 2
        for length, centre, binning in axes
    )


def _distortion(info: Any) -> tuple[tuple[float, ...], bool]:
    """The coefficients without needless zeros, and whether they are a fisheye lens's."""
    values = tuple(float(value) for value in info.d)
    name = info.distortion_model.strip().lower()
    if name in _NO_MODEL and not any(values):
        return (), False
    if name not in DISTORTION_MODELS:
        raise UserError(
            f"camera_info has the distortion model {info.distortion_model[:40]!r}: calibrate with "
            f"{', '.join(DISTORTION_MODELS)}"
        )
    counts = DISTORTION_MODELS[name]
    # Drivers with an array of fixed length send zeros behind.
    count = next((n for n in counts if n <= len(values) and not any(values[n:])), None)
    if count is None:
        raise UserError(
            f"camera_info has {len(values)} distortion coefficients, {name} takes "
            f"{' or '.join(map(str, counts))}: calibrate the camera anew"
        )
    if not all(map(math.isfinite, values)):
        raise UserError("camera_info has distortion coefficients that are not finite: calibrate")
    return values[:count], name == FISHEYE


def _region(info: Any) -> tuple[int, int, int, int]:
    """Left, top, width and height of the image on the sensor, in unbinned pixels."""
    width, height, roi = int(info.width), int(info.height), info.roi
    if width <= 0 or height <= 0:
        raise UserError(f"camera_info is for an image of {width}x{height}: check the camera driver")
    if not (roi.width or roi.height):
        return 0, 0, width, height
    left, top = int(roi.x_offset), int(roi.y_offset)
    if not (0 < roi.width <= width - left and 0 < roi.height <= height - top):
        raise UserError(
            f"camera_info has a region of interest of {roi.width}x{roi.height} at ({left}, {top}) "
            f"on a sensor of {width}x{height}: check the camera driver"
        )
    return left, top, int(roi.width), int(roi.height)
