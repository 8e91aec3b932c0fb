"""Where frames are: TF where tf2_ros is installed (no Python wheel carries it)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.mapping.poses import Transforms, from_quaternion

if TYPE_CHECKING:
    from rclpy.node import Node

PATIENCE = 0.2
"""Seconds to wait for a transform that comes after its image."""
_POLL = 0.01


class NoTransforms:
    """Stands in where tf2_ros is not installed; see `Transforms`."""

    def lookup(self, target: str, source: str, moments: Sequence[int]) -> np.ndarray:
        """Knows of a frame in itself only."""
        target, source = target.lstrip("/"), source.lstrip("/")  # as TF 1 had them
        if target == source:
            return np.eye(4)
        raise UserError(f"no transform from '{source}' to '{target}': tf2_ros is not installed")

    def close(self) -> None:
        """Does nothing."""


class TfTransforms:
    """Listens to /tf and /tf_static; see `Transforms`.

    Args:
        node: spun by another thread than the one that looks up.

    Raises:
        ImportError: tf2_ros is not installed.
    """

    def __init__(self, node: Node) -> None:
        import tf2_ros

        self._buffer = tf2_ros.Buffer(node=node)
        self._listener = tf2_ros.TransformListener(self._buffer, node)

    def lookup(self, target: str, source: str, moments: Sequence[int]) -> np.ndarray:
        """Waits up to `PATIENCE` seconds where the image has overtaken its moment's transform."""
        target, source = target.lstrip("/"), source.lstrip("/")  # as TF 1 had them
        if target == source:
            return np.eye(4)
        *others, last = moments
        for moment in others:
            try:
                return self._at(target, source, moment)
            except UserError:
                continue
        return self._at(target, source, last)

    def _at(self, target: str, source: str, nanoseconds: int) -> np.ndarray:
        from rclpy.clock_type import ClockType
        from rclpy.time import Time

        moment = Time(nanoseconds=nanoseconds, clock_type=ClockType.ROS_TIME)
        deadline = time.monotonic() + PATIENCE
        while True:
            # Asked before the lookup, so that what comes in between is no reason to give up.
            behind = self._ends_before(target, source, moment)
            try:
                # Not with tf2's timeout: it counts simulated time and so may never pass.
                found = self._buffer.lookup_transform(target, source, moment)
            except Exception as error:  # tf2's own types, and whatever a bad frame name raises
                if behind and time.monotonic() < deadline:
                    time.sleep(_POLL)
                    continue
                raise UserError(
                    f"no transform from '{source}' to '{target}': {one_line(error, 200)}"
                ) from error
            moved, turned = found.transform.translation, found.transform.rotation
            return from_quaternion(
                (moved.x, moved.y, moved.z), (turned.x, turned.y, turned.z, turned.w)
            )

    def _ends_before(self, target: str, source: str, moment: Any) -> bool:
        """Whether what TF knows ends before a moment, so that the rest may be on its way."""
        try:
            newest = self._buffer.get_latest_common_time(target, source)
        except Exception:  # as above
            return False
        before: bool = newest.nanoseconds < moment.nanoseconds
        return before

    def close(self) -> None:
        """Stops listening."""
        self._listener.unregister()


def make_transforms(node: Node) -> Transforms:
    """Transforms from TF where tf2_ros is installed, else none."""
    try:
        return TfTransforms(node)
    except ImportError:
        return NoTransforms()
