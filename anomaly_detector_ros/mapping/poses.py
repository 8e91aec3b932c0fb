"""Where the camera is on the robot: rigid transforms as 4x4 matrices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anomaly_detector_ros.errors import UserError

# REP 103: a body looks along x with y to its left, an optical frame along z with x to its right.
_BODY_FROM_OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
_TOLERANCE = 1e-3


def mounted(height: float, roll: float = 0.0, pitch: float = 0.0) -> np.ndarray:
    """Pose of a forward-looking camera above the origin: float64 (4, 4), base <- optical frame.

    Args:
        height: metres above the base frame's origin.
        roll, pitch: radians about the robot's forward and left axis (REP 103), roll first; a
            camera that looks down has a positive pitch.
    """
    cr, sr, cp, sp = np.cos(roll), np.sin(roll), np.cos(pitch), np.sin(pitch)
    about_x = np.array([[1.0, 0.0, 0.0], [0.0, cr, -sr], [0.0, sr, cr]])
    about_y = np.array([[cp, 0.0, sp], [0.0, 1.0, 0.0], [-sp, 0.0, cp]])
    pose = np.eye(4)
    pose[:3, :3] = about_y @ about_x @ _BODY_FROM_OPTICAL
    pose[2, 3] = height
    return pose


def from_numbers(numbers: Sequence[float]) -> np.ndarray:
    """A rigid transform of 16 numbers, row by row: float64 (4, 4).

    Raises:
        UserError: not 16 finite numbers, or no rotation and translation.
    """
    if len(numbers) != 16:
        raise UserError(f"a transform has 16 numbers, row by row, not {len(numbers)}")
    matrix = np.array(numbers, np.float64).reshape(4, 4)
    rotation = matrix[:3, :3]
    with np.errstate(all="ignore"):
        rigid = (
            np.isfinite(matrix).all()
            and np.allclose(matrix[3], (0.0, 0.0, 0.0, 1.0), atol=_TOLERANCE)
            and np.allclose(rotation @ rotation.T, np.eye(3), atol=_TOLERANCE)
            and np.linalg.det(rotation) > 0.0
        )
    if not rigid:
        raise UserError(
            "a transform's upper left 3x3 must be a rotation and its last row 0 0 0 1: give "
            "base <- optical frame row by row"
        )
    return matrix


def from_quaternion(translation: Sequence[float], quaternion: Sequence[float]) -> np.ndarray:
    """The transform of x y z in metres and a quaternion x y z w: float64 (4, 4).

    Raises:
        UserError: numbers that are not finite, or a quaternion of length 0.
    """
    values = np.array([*translation, *quaternion], np.float64)
    length = np.linalg.norm(values[3:])
    if values.shape != (7,) or not np.isfinite(values).all() or length < 1e-6:
        raise UserError("a transform's translation and quaternion must be finite and not all zero")
    x, y, z, w = values[3:] / length
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, 3] = values[:3]
    return matrix


def transform(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (N, 3) or more columns, of which x y z count, moved by a pose (4, 4): (N, 3)."""
    rotation = pose[:3, :3].astype(points.dtype)
    return points[:, :3] @ rotation.T + pose[:3, 3].astype(points.dtype)
