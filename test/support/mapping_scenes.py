"""Scenes with known positions, drawn with OpenCV's own projection."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np

from anomaly_detector_ros.mapping.camera_model import CameraModel

WIDTH, HEIGHT = 1280, 720
K = (900.0, 0.0, 655.0, 0.0, 890.0, 352.0, 0.0, 0.0, 1.0)
LENSES: dict[str, tuple[str, list[float]]] = {
    "pinhole": ("plumb_bob", []),
    "plumb_bob": ("plumb_bob", [-0.32, 0.11, 0.0012, -0.0007, -0.02]),
    "rational": ("rational_polynomial", [0.9, 0.3, 4e-4, -3e-4, 0.02, 1.25, 0.5, 0.08]),
    "equidistant": ("equidistant", [0.05, -0.01, 0.004, -0.001]),
}


def camera_info(lens: str = "pinhole", **fields: Any) -> SimpleNamespace:
    """The fields of a `sensor_msgs/CameraInfo`; ``fields`` replace what would be right."""
    name, coefficients = LENSES[lens]
    right = {
        "width": WIDTH,
        "height": HEIGHT,
        "k": list(K),
        "d": coefficients,
        "p": [0.0] * 12,
        "distortion_model": name,
        "binning_x": 0,
        "binning_y": 0,
        "roi": SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0),
    }
    return SimpleNamespace(**{**right, **fields})


def project(lens: str, points: np.ndarray, pose: np.ndarray | None = None) -> np.ndarray:
    """Pixels (N, 2) of points (N, 3), by OpenCV: of the optical frame, or the base with a pose."""
    world_to_camera = np.eye(4) if pose is None else np.linalg.inv(pose)
    turned, _ = cv2.Rodrigues(world_to_camera[:3, :3])
    matrix, coefficients = np.array(K).reshape(3, 3), np.array(LENSES[lens][1])
    points = np.asarray(points, np.float64).reshape(-1, 1, 3)
    moved = world_to_camera[:3, 3]
    if lens == "equidistant":
        pixels, _ = cv2.fisheye.projectPoints(points, turned, moved, matrix, coefficients)
    else:
        pixels, _ = cv2.projectPoints(points, turned, moved, matrix, coefficients)
    return pixels.reshape(-1, 2)


def board_outline(x: float, y: float, width: float, height: float) -> np.ndarray:
    """Points (N, 3) around an upright board that faces backwards along x, foot at z = 0."""
    steps = np.linspace(0.0, 1.0, 40)
    left, right = y + width / 2, y - width / 2
    sides = [
        [(x, left + (right - left) * t, 0.0) for t in steps],
        [(x, right, height * t) for t in steps],
        [(x, right + (left - right) * t, height) for t in steps],
        [(x, left, height * (1 - t)) for t in steps],
    ]
    return np.array([point for side in sides for point in side])


def draw(lens: str, pose: np.ndarray, outline: np.ndarray) -> np.ndarray:
    """The mask, bool (H, W), of what an outline in the base frame encloses."""
    canvas = np.zeros((HEIGHT, WIDTH), np.uint8)
    polygon = np.rint(project(lens, outline, pose) * 16).astype(np.int32)
    cv2.fillPoly(canvas, [polygon.reshape(-1, 1, 2)], 1, shift=4)
    return canvas.astype(bool)


def model(lens: str) -> CameraModel:
    """The camera model of a lens, its rays computed once for all tests."""
    if lens not in _MODELS:
        _MODELS[lens] = CameraModel.from_info(camera_info(lens))
    return _MODELS[lens]


_MODELS: dict[str, CameraModel] = {}
