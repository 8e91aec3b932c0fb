"""Where the camera is on the robot: rigid transforms as 4x4 matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.spatial.transform import Rotation

from anomaly_detector_ros.errors import UserError

# A body looks along x with y to its left, an optical frame along z with x to its right.
BODY_FROM_OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
"""Turns points of a camera's optical frame into those of its body frame (REP 103)."""
_TOLERANCE = 1e-3


def mounted(height: float, roll: float = 0.0, pitch: float = 0.0) -> np.ndarray:
    """Pose of a forward-looking camera above the origin: float64 (4, 4), base <- optical frame.

    Args:
        height: metres above the base frame's origin.
        roll, pitch: radians about the robot's forward and left axis (REP 103), roll first; a
            camera that looks down has a positive pitch.
    """
    tilted = Rotation.from_euler("xy", [roll, pitch])  # lower case: about axes that stay
    return _matrix(tilted.as_matrix() @ BODY_FROM_OPTICAL, [0.0, 0.0, height])


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
    if values.shape != (7,) or not np.isfinite(values).all() or np.linalg.norm(values[3:]) < 1e-6:
        raise UserError("a transform's translation and quaternion must be finite and not all zero")
    return _matrix(Rotation.from_quat(values[3:]).as_matrix(), values[:3])


def transform(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (N, 3) or more columns, of which x y z count, moved by a pose (4, 4): (N, 3)."""
    rotation = pose[:3, :3].astype(points.dtype)
    moved: np.ndarray = points[:, :3] @ rotation.T + pose[:3, 3].astype(points.dtype)
    return moved


def _matrix(rotation: np.ndarray, translation: Sequence[float] | np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, translation
    return matrix


@dataclass(frozen=True)
class Taken:
    """Where and when an image was taken, as TF is asked for it.

    Attributes:
        frame: the frame of its header.
        moments: nanoseconds at which TF may know where the camera was, the most likely first; the
            last one is by the clock of whoever took the image in.
    """

    frame: str
    moments: tuple[int, ...]

    @property
    def seen_at(self) -> int:
        """When that was by the clock of whoever took the image in, nanoseconds."""
        return self.moments[-1]


class Transforms(Protocol):
    """Looks up transforms, as TF does."""

    def lookup(self, target: str, source: str, moments: Sequence[int]) -> np.ndarray:
        """The pose of frame ``source`` in frame ``target``: float64 (4, 4), target <- source.

        Args:
            moments: nanoseconds; the first that is known counts.

        Raises:
            UserError: it is not known at any of them.
        """
        ...

    def close(self) -> None:
        """Stops listening."""
        ...


class Extrinsics:
    """The pose of one camera in the robot's base frame.

    Given by ``matrix``; or else by ``height``, ``roll`` and ``pitch``; or, where neither is set, by
    TF at the image's stamp. What a user wrote down for a camera goes before what TF says.

    Args:
        transforms: where TF is looked up.
        base_frame: the robot's base frame.
        height: of the camera above the base frame's origin, metres; 0: not given.
        roll, pitch: radians; see `mounted`.
        matrix: 16 numbers, base <- optical frame row by row; empty or all zero: not given.
        body: whether the images' frame, as TF has it, is the camera's body: x forward, z up.

    Raises:
        UserError: ``matrix`` is no rigid transform.
    """

    def __init__(
        self,
        transforms: Transforms,
        base_frame: str,
        *,
        height: float = 0.0,
        roll: float = 0.0,
        pitch: float = 0.0,
        matrix: Sequence[float] = (),
        body: bool = False,
    ) -> None:
        self._transforms, self._base_frame, self._body = transforms, base_frame, body
        self._given: np.ndarray | None = None
        if any(matrix):
            self._given = from_numbers(matrix)
        elif height > 0.0:
            self._given = mounted(height, roll, pitch)

    def pose(self, taken: Taken) -> np.ndarray:
        """The camera's pose when an image was taken: float64 (4, 4), base <- optical frame.

        Raises:
            UserError: not given by parameters, and TF does not know it.
        """
        if self._given is not None:
            return self._given
        pose = self._transforms.lookup(self._base_frame, taken.frame, taken.moments)
        if self._body:
            pose = _matrix(pose[:3, :3] @ BODY_FROM_OPTICAL, pose[:3, 3])
        return pose
