"""Where a camera is: from TF where tf2_ros is installed, or from parameters."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.mapping.poses import from_numbers, from_quaternion, mounted

PATIENCE = 0.2
"""Seconds to wait for a transform that comes after its image."""
_POLL = 0.01


class Transforms(Protocol):
    """Looks up transforms."""

    def lookup(self, target: str, source: str, stamp: Any) -> np.ndarray:
        """The pose of frame ``source`` in frame ``target``: float64 (4, 4), target <- source.

        Args:
            stamp: `builtin_interfaces/Time`, the moment that counts.

        Raises:
            UserError: it is not known.
        """
        ...

    def close(self) -> None:
        """Stops listening."""
        ...


class NoTransforms:
    """Stands in where tf2_ros is not installed; see `Transforms`."""

    def lookup(self, target: str, source: str, stamp: Any) -> np.ndarray:
        """Knows of a frame in itself only."""
        if target == source:
            return np.eye(4)
        raise UserError(f"no transform from '{source}' to '{target}': tf2_ros is not installed")

    def close(self) -> None:
        """Does nothing."""


class TfTransforms:
    """Listens to /tf and /tf_static; see `Transforms`.

    Args:
        node: an rclpy node that is spun by somebody else's thread than the one that looks up.

    Raises:
        ImportError: tf2_ros is not installed.
    """

    def __init__(self, node: Any) -> None:
        import tf2_ros

        self._buffer = tf2_ros.Buffer(node=node)
        self._listener = tf2_ros.TransformListener(self._buffer, node)

    def lookup(self, target: str, source: str, stamp: Any) -> np.ndarray:
        """Waits up to `PATIENCE` seconds where the image has overtaken its moment's transform."""
        from rclpy.time import Time

        if target == source:
            return np.eye(4)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                # Not with tf2's timeout: it counts simulated time and so may never pass.
                found = self._buffer.lookup_transform(target, source, Time.from_msg(stamp))
            except Exception as error:  # tf2's own types, and whatever a bad frame name raises
                # "Lookup would require extrapolation into the future": it may be on its way.
                if "into the future" in str(error) and time.monotonic() < deadline:
                    time.sleep(_POLL)
                    continue
                raise UserError(
                    f"no transform from '{source}' to '{target}': {one_line(error, 200)}"
                ) from error
            moved, turned = found.transform.translation, found.transform.rotation
            return from_quaternion(
                (moved.x, moved.y, moved.z), (turned.x, turned.y, turned.z, turned.w)
            )

    def close(self) -> None:
        """Stops listening."""
        self._listener.unregister()


def make_transforms(node: Any) -> Transforms:
    """Transforms from TF where tf2_ros is installed and works, else none."""
    try:
        return TfTransforms(node)
    except ImportError:
        return NoTransforms()


class Extrinsics:
    """The pose of one camera in the robot's base frame.

    Given by ``matrix``; or else by ``height``, ``roll`` and ``pitch``; or, where neither is set, by
    TF at the image's stamp. What a user wrote down for a camera goes before what TF says.

    Args:
        transforms: where TF is looked up.
        base_frame: the robot's base frame.
        height: of the camera above the base frame's origin, metres; 0: not given.
        roll, pitch: radians; see `mapping.poses.mounted`.
        matrix: 16 numbers, base <- optical frame row by row; empty: not given.

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
    ) -> None:
        self.transforms, self.base_frame = transforms, base_frame
        self._given: np.ndarray | None = None
        if len(matrix):
            self._given = from_numbers(matrix)
        elif height > 0.0:
            self._given = mounted(height, roll, pitch)

    def pose(self, header: Any) -> np.ndarray:
        """The camera's pose when an image was taken: float64 (4, 4), base <- optical frame.

        Args:
            header: the image's; its frame is the camera's optical frame.

        Raises:
            UserError: not given by parameters, and TF does not know it.
        """
        if self._given is not None:
            return self._given
        return self.transforms.lookup(self.base_frame, header.frame_id, header.stamp)
