"""A camera's obstacles on the ROS graph, and its share in the costmap."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.mapping.depth import DepthBuffer
from anomaly_detector_ros.mapping.obstacle_finder import ObstacleFinder
from anomaly_detector_ros.mapping.obstacles import ObstacleSettings
from anomaly_detector_ros.mapping.poses import Extrinsics, Transforms
from anomaly_detector_ros.ros.costmap import Costmap
from anomaly_detector_ros.ros.parameters import POSES, Parameters
from anomaly_detector_ros.ros.publishers import cloud_message
from anomaly_detector_ros.ros.qos import Topics

if TYPE_CHECKING:
    from std_msgs.msg import Header

OUTPUTS: tuple[str, ...] = ("obstacles", "points")
"""Topics of a camera: the obstacles, and an organised cloud of all pixels."""


class ObstacleOutputs:
    """What one camera tells of the space ahead; computed for nobody who does not listen.

    Attributes:
        depth: takes the camera's depth images, serialised. message_filters would synchronise them,
            but is not among the Python wheels of ROS, deserialises every image and knows nothing
            of one that is still in work.

    Args:
        topics: makes the publishers.
        parameters: the node's, in force at any time.
        camera: the camera's name.
        transforms: where TF is looked up.
        costmap: what all cameras add to.
    """

    def __init__(
        self,
        topics: Topics,
        parameters: Parameters,
        camera: str,
        transforms: Transforms,
        costmap: Costmap,
    ) -> None:
        self._parameters, self._camera = parameters, camera
        self._transforms, self._costmap = transforms, costmap
        self._finder = ObstacleFinder()
        self.depth = DepthBuffer(parameters["obstacles.depth_tolerance"])
        self._obstacles, self._points = (
            topics.advertise(PointCloud2, f"~/{camera}/{output}") for output in OUTPUTS
        )

    def publish(
        self, header: Header, mask: np.ndarray, heatmap: np.ndarray, info: CameraInfo | None
    ) -> str:
        """Publishes what somebody listens to.

        Args:
            header: the image's.
            mask: bool (H, W).
            heatmap: float32 (H, W).
            info: the last message on the camera's ``camera_info``.

        Returns:
            Why something that somebody listens to is missing, in one line; else empty.
        """
        points, obstacles = self._points.wanted, self._obstacles.wanted
        mapped = self._costmap.wanted
        if not (points or obstacles or mapped):
            return ""
        settings = self._parameters.settings(ObstacleSettings, "obstacles")
        try:
            found = self._finder.find(
                info,
                self._matched_depth(settings.source),
                mask,
                heatmap,
                header,
                self._extrinsics(),
                settings,
                points=obstacles or mapped,
                free=mapped,
                cloud=points,
            )
        except UserError as error:
            return str(error)
        if found.cloud is not None:
            self._points.send(cloud_message(header, found.cloud))
        if obstacles and not found.problem:
            self._obstacles.send(cloud_message(header, found.points))
        return self._costmap.add(header, found) if mapped else found.problem

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

    def _extrinsics(self) -> Extrinsics:
        own = {spec.name: self._parameters.of_camera(self._camera, spec.name) for spec in POSES}
        own["matrix"] = own.pop("extrinsics")
        return Extrinsics(self._transforms, self._parameters["base_frame"], **own)
