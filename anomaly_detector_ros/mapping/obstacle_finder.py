"""What a camera's anomalies come to in space: from its messages to points."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.mapping.camera_model import CameraModel
from anomaly_detector_ros.mapping.depth import depth_metres
from anomaly_detector_ros.mapping.obstacles import (
    ObstacleSettings,
    free_ground,
    obstacles_from_depth,
    obstacles_from_ground,
    organised,
)
from anomaly_detector_ros.mapping.poses import Extrinsics

SOURCES: tuple[str, ...] = ("auto", "depth", "ground")
"""Values of the parameter ``obstacles.source``."""


@dataclass(frozen=True)
class Obstacles:
    """What one image came to, in the camera's optical frame, metres.

    Attributes:
        points: float32 (N, 4), x y z intensity, on anomalies.
        free: float32 (M, 3), on nominal ground; empty without a pose.
        pose: float64 (4, 4), base <- optical frame; None: not known.
        source: ``depth`` or ``ground``; empty where there is a problem.
        problem: why there are no points, in one line; else empty. No anomaly is no problem.
    """

    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    free: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.float32))
    pose: np.ndarray | None = None
    source: str = ""
    problem: str = ""


@dataclass(frozen=True)
class _View:
    model: CameraModel
    depth: np.ndarray | None
    pose: np.ndarray | None


class ObstacleFinder:
    """Finds the obstacles of one camera.

    Args:
        extrinsics: where the camera is; may be replaced between two images.
    """

    def __init__(self, extrinsics: Extrinsics) -> None:
        self.extrinsics = extrinsics
        self._model: CameraModel | None = None

    def find(
        self,
        info: Any | None,
        depth: Any | None,
        mask: np.ndarray,
        heatmap: np.ndarray,
        header: Any,
        settings: ObstacleSettings,
        source: str = "auto",
        free: bool = False,
    ) -> Obstacles:
        """The obstacles of one image. Nothing in a message makes this raise.

        Args:
            info: `sensor_msgs/CameraInfo`, or None where none came.
            depth: `sensor_msgs/Image`, registered, or None where none matches the image's stamp.
            mask: bool (H, W).
            heatmap: float32 (H, W).
            header: the image's.
            source: ``depth``, ``ground``, or ``auto``: depth where there is a depth image, else
                ground.
            free: whether free ground is asked for, too.
        """
        try:
            view = self._view(info, depth, mask.shape, header, source, wants_pose=free)
            model, metres, pose = view.model, view.depth, view.pose
            if metres is not None:
                points = obstacles_from_depth(model, metres, mask, heatmap, settings)
            else:
                assert pose is not None  # without depth there is no view without it
                points = obstacles_from_ground(model, pose, mask, heatmap, settings)
            found = Obstacles(points, pose=pose, source="ground" if metres is None else "depth")
            if free and pose is not None:
                found = replace(found, free=free_ground(model, pose, mask, metres, settings))
            return found
        except Exception as error:
            return Obstacles(problem=_line(error))

    def organised(
        self,
        info: Any | None,
        depth: Any | None,
        mask: np.ndarray,
        heatmap: np.ndarray,
        header: Any,
        settings: ObstacleSettings,
        source: str = "auto",
    ) -> tuple[np.ndarray | None, str]:
        """A point for each pixel, float32 (H, W, 4), and why there is none, in one line.

        Arguments as for :meth:`find`.
        """
        try:
            view = self._view(info, depth, mask.shape, header, source, wants_pose=False)
            cloud = organised(view.model, view.pose, view.depth, mask, heatmap, settings)
            return cloud, ""
        except Exception as error:
            return None, _line(error)

    def _view(
        self,
        info: Any | None,
        depth: Any | None,
        size: tuple[int, ...],
        header: Any,
        source: str,
        wants_pose: bool,
    ) -> _View:
        """What is needed of the messages; with depth the pose is only a wish."""
        if source not in SOURCES:
            raise UserError(f"obstacles.source must be one of {', '.join(SOURCES)}, not {source!r}")
        model = self._calibrated(info, size)
        if source == "depth" and depth is None:
            raise UserError(
                "no depth image matches the image's stamp: check the depth topic, raise "
                "obstacles.depth_tolerance or set obstacles.source to auto"
            )
        if depth is None or source == "ground":
            return _View(model, None, self._ground_pose(header))
        metres = depth_metres(depth, (size[0], size[1]))
        if not wants_pose:
            return _View(model, metres, None)
        try:
            return _View(model, metres, self.extrinsics.pose(header))
        except UserError:
            return _View(model, metres, None)

    def _calibrated(self, info: Any | None, size: tuple[int, ...]) -> CameraModel:
        """The camera's model; the same one, with its rays, while the calibration stays."""
        if info is None:
            raise UserError("no camera_info: publish the camera's calibration")
        model = CameraModel.from_info(info)
        if (model.height, model.width) != tuple(size):
            raise UserError(
                f"camera_info is for {model.width}x{model.height}, the image is "
                f"{size[1]}x{size[0]}: correct the camera driver's calibration"
            )
        if self._model != model:
            self._model = model
        return self._model

    def _ground_pose(self, header: Any) -> np.ndarray:
        try:
            return self.extrinsics.pose(header)
        except UserError as error:
            raise UserError(
                f"{error}; without depth the camera's pose is needed: publish it on TF or set the "
                "camera's height, roll and pitch"
            ) from error


def _line(error: Exception) -> str:
    """What went wrong, in one line; the type where nobody foresaw it."""
    known = isinstance(error, UserError)
    return one_line(error if known else f"{type(error).__name__}: {error}", 400)
