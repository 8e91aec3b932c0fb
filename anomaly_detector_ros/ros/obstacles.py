"""A camera's obstacles on the ROS graph, and its share in the costmap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from visualization_msgs.msg import MarkerArray

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.mapping.camera_model import CameraModel
from anomaly_detector_ros.mapping.depth import DepthBuffer
from anomaly_detector_ros.mapping.obstacle_finder import ObstacleFinder
from anomaly_detector_ros.mapping.obstacles import ObstacleSettings, things
from anomaly_detector_ros.mapping.poses import BODY_FROM_OPTICAL, Extrinsics, Taken, Transforms
from anomaly_detector_ros.ros.costmap import Costmap
from anomaly_detector_ros.ros.output import Output
from anomaly_detector_ros.ros.parameters import POSES, Parameters
from anomaly_detector_ros.ros.publishers import cloud_message, markers_message
from anomaly_detector_ros.ros.qos import Topics

if TYPE_CHECKING:
    from std_msgs.msg import Header

OUTPUTS: tuple[str, ...] = ("obstacles", "points", "markers")
"""Topics of a camera: the obstacles, an organised cloud of all pixels, and a labelled box around
each connected anomaly."""


class ObstacleOutputs:
    """What one camera tells of the space ahead; computed for nobody who does not listen.

    Attributes:
        outputs: its topics, and its share in the costmap, by name.
        depth: takes the camera's depth images, serialised. message_filters would synchronise them,
            but is not among the Python wheels of ROS, deserialises every image and knows nothing
            of one that is still in work.

    Args:
        topics: makes the publishers.
        parameters: the node's, in force at any time.
        camera: the camera's name.
        rectified: whether the topic's name says that its images are.
        transforms: where TF is looked up.
        costmap: what all cameras add to.
    """

    def __init__(
        self,
        topics: Topics,
        parameters: Parameters,
        camera: str,
        rectified: bool,
        transforms: Transforms,
        costmap: Costmap,
    ) -> None:
        self._parameters, self._camera, self._rectified = parameters, camera, rectified
        self._transforms, self._costmap = transforms, costmap
        self._finder = ObstacleFinder()
        self.depth = DepthBuffer(parameters["obstacles.depth_tolerance"])
        self._obstacles, self._points, self._markers = (
            topics.advertise(kind, f"~/{camera}/{output}")
            for output, kind in zip(OUTPUTS, (PointCloud2, PointCloud2, MarkerArray), strict=True)
        )
        self._share = costmap.share()
        self.outputs: Mapping[str, Output] = {
            **dict(zip(OUTPUTS, (self._obstacles, self._points, self._markers), strict=True)),
            "costmap": self._share,
        }

    def publish(
        self,
        header: Header,
        now: int,
        taken: Taken,
        mask: np.ndarray,
        heatmap: np.ndarray,
        info: CameraInfo | None,
    ) -> None:
        """Publishes what somebody listens to, or tells its output why it cannot.

        Args:
            header: the image's.
            now: the node's clock, nanoseconds.
            taken: where and when the image was.
            mask: bool (H, W).
            heatmap: float32 (H, W).
            info: the last message on the camera's ``camera_info``.
        """
        wanted = [output for output in self.outputs.values() if output.wanted]
        if not wanted:
            return
        mapped = self._share in wanted
        body = self._own("image_frame") == "body"
        try:
            settings = self._settings()
            found = self._finder.find(
                info,
                self._matched_depth(settings.source),
                mask,
                heatmap,
                taken,
                self._extrinsics(body),
                settings,
                points=mapped or self._obstacles in wanted,
                free=mapped,
                cloud=self._points in wanted or self._markers in wanted,
            )
            if found.problem:
                raise UserError(found.problem)
        except UserError as error:
            for output in wanted:
                output.cannot(str(error))
            return
        for output, points in ((self._points, found.cloud), (self._obstacles, found.points)):
            if output in wanted and points is not None:
                output.send(cloud_message(header, _in_body(points) if body else points))
        if self._markers in wanted and found.cloud is not None:
            cloud = _in_body(found.cloud) if body else found.cloud
            up = (0.0, 0.0, 1.0) if body else (0.0, -1.0, 0.0)
            self._markers.send(markers_message(header, things(cloud, mask, settings), up))
        if mapped:
            try:
                self._share.send(self._costmap.add(now, taken, found))
            except UserError as error:
                self._share.cannot(str(error))

    def locate(
        self,
        point: np.ndarray,
        frame: str,
        size: tuple[int, ...],
        taken: Taken,
        info: CameraInfo | None,
    ) -> tuple[int, int] | None:
        """The pixel, row and column, of an image that shows a point; None: none does.

        Args:
            point: float64 (3,), in ``frame``.
            size: height and width of the image.
            taken: where and when the image was.
            info: the last message on the camera's ``camera_info``.

        Raises:
            UserError: no calibration, or TF does not know the frames.
        """
        if info is None:
            raise UserError("no camera_info: publish the camera's calibration")
        model = CameraModel.from_info(
            info, (size[0], size[1]), rectified=self._settings().rectified
        )
        body = self._own("image_frame") == "body"
        if frame.lstrip("/") == taken.frame.lstrip("/"):
            optical = BODY_FROM_OPTICAL.T @ point if body else point
        else:
            base = self._parameters["base_frame"]
            there = self._transforms.lookup(base, frame, taken.moments)
            camera = self._extrinsics(body).pose(taken)
            optical = (np.linalg.inv(camera) @ there @ np.append(point, 1.0))[:3]
        if not optical[2] > 0:
            return None
        column, row = model.project(optical[None])[0]
        inside = -0.5 <= row < size[0] - 0.5 and -0.5 <= column < size[1] - 0.5
        return (round(row), round(column)) if inside else None

    def _own(self, name: str) -> Any:
        return self._parameters.of_camera(self._camera, name)

    def _settings(self) -> ObstacleSettings:
        rectification = self._own("rectification")
        rectified = self._rectified if rectification == "auto" else rectification == "rectified"
        return self._parameters.settings(
            ObstacleSettings,
            "obstacles",
            rectified=rectified,
            depth_unit=self._own("depth_unit"),
        )

    def _matched_depth(self, source: str) -> Image | None:
        data = self.depth.matched()
        if data is None or source == "ground":
            return None
        try:
            return deserialize_message(data, Image)
        except Exception as error:  # rclpy raises its own error types, not documented ones
            raise UserError(
                f"depth image cannot be deserialised: {one_line(error, 200)}"
            ) from error

    def _extrinsics(self, body: bool) -> Extrinsics:
        own = {spec.name: self._own(spec.name) for spec in POSES}
        own["matrix"] = own.pop("extrinsics")
        return Extrinsics(self._transforms, self._parameters["base_frame"], body=body, **own)


def _in_body(points: np.ndarray) -> np.ndarray:
    """Points of the optical frame, (..., 4) with x y z first, in the camera's body frame."""
    turned = points.copy()
    turned[..., :3] = points[..., :3] @ BODY_FROM_OPTICAL.T.astype(points.dtype)
    return turned
