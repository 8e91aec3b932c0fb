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
from anomaly_detector_ros.mapping.poses import Extrinsics, Taken

SOURCES: tuple[str, ...] = ("auto", "depth", "ground")
"""Values of `ObstacleSettings.source`."""


@dataclass(frozen=True)
class Obstacles:
    """What one image came to, in the camera's optical frame, metres.

    Attributes:
        points: float32 (N, 4), x y z intensity, on anomalies.
        free: float32 (M, 3), on nominal ground; empty without a pose.
        cloud: float32 (H, W, 4), a point for each pixel; None where it was not asked for.
        pose: float64 (4, 4), base <- optical frame; None: not known.
        source: ``depth`` or ``ground``; empty where there is a problem.
        problem: why there are no points, in one line; else empty. No anomaly is no problem.
    """

    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    free: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.float32))
    cloud: np.ndarray | None = None
    pose: np.ndarray | None = None
    source: str = ""
    problem: str = ""


class ObstacleFinder:
    """Finds the obstacles of one camera, whose rays it keeps while the calibration stays."""

    def __init__(self) -> None:
        self._model: CameraModel | None = None

    def find(
        self,
        info: Any | None,
        depth: Any | None,
        mask: np.ndarray,
        heatmap: np.ndarray,
        taken: Taken,
        extrinsics: Extrinsics,
        settings: ObstacleSettings,
        *,
        points: bool = True,
        free: bool = False,
        cloud: bool = False,
    ) -> Obstacles:
        """The obstacles of one image. Nothing in a message makes this raise.

        Args:
            info: `sensor_msgs/CameraInfo`, or None where none came.
            depth: `sensor_msgs/Image`, registered, or None where none matches the image's stamp.
            mask: bool (H, W).
            heatmap: float32 (H, W).
            taken: where and when the image was.
            extrinsics: where the camera is.
            points, free, cloud: which of the fields of `Obstacles` are asked for.
        """
        try:
            model = self._calibrated(info, mask.shape, settings.rectified)
            metres = _metres(depth, mask.shape, settings)
            pose = None
            if metres is None or free:  # with depth the pose is only a wish
                pose = _pose(extrinsics, taken, needed=metres is None)
            found = Obstacles(pose=pose, source="ground" if metres is None else "depth")
            if points and metres is not None:
                on_it = obstacles_from_depth(model, metres, mask, heatmap, settings)
                found = replace(found, points=on_it)
            elif points and pose is not None:
                on_it = obstacles_from_ground(model, pose, mask, heatmap, settings)
                found = replace(found, points=on_it)
            if free and pose is not None:
                found = replace(found, free=free_ground(model, pose, mask, metres, settings))
            if cloud:
                each = organised(model, pose, metres, mask, heatmap, settings)
                found = replace(found, cloud=each)
            return found
        except Exception as error:
            known = isinstance(error, UserError)  # else the type tells what nobody foresaw
            line = one_line(error if known else f"{type(error).__name__}: {error}", 400)
            return Obstacles(problem=line)

    def _calibrated(self, info: Any | None, size: tuple[int, ...], rectified: bool) -> CameraModel:
        if info is None:
            raise UserError("no camera_info: publish the camera's calibration")
        model = CameraModel.from_info(info, size, rectified=rectified)
        if self._model != model:
            self._model = model
        return self._model


def _metres(
    depth: Any | None, size: tuple[int, ...], settings: ObstacleSettings
) -> np.ndarray | None:
    """Depth in metres (H, W); None: the ground is to tell."""
    source = settings.source
    if source not in SOURCES:
        raise UserError(f"obstacles.source must be one of {', '.join(SOURCES)}, not {source!r}")
    if source == "depth" and depth is None:
        raise UserError(
            "no depth image matches the image's stamp: check the depth topic, raise "
            "obstacles.depth_tolerance or set obstacles.source to auto"
        )
    if depth is None or source == "ground":
        return None
    return depth_metres(depth, (size[0], size[1]), settings.depth_unit)


def _pose(extrinsics: Extrinsics, taken: Taken, *, needed: bool) -> np.ndarray | None:
    try:
        return extrinsics.pose(taken)
    except UserError as error:
        if not needed:
            return None
        raise UserError(
            f"{error}; without depth the camera's pose is needed: publish it on TF or set the "
            "camera's height, roll and pitch"
        ) from error
