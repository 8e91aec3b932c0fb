"""A camera's obstacles on the ROS graph, and its share in the costmap."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.mapping.obstacles import ObstacleSettings
from anomaly_detector_ros.ros.costmap_output import CostmapOutput
from anomaly_detector_ros.ros.extrinsics import Extrinsics, Transforms
from anomaly_detector_ros.ros.obstacles import ObstacleFinder
from anomaly_detector_ros.ros.obstacles_depth import DepthBuffer
from anomaly_detector_ros.ros.parameter_table import camera_parameter
from anomaly_detector_ros.ros.pointcloud import cloud_message
from anomaly_detector_ros.ros.qos import Warn, advertise

if TYPE_CHECKING:
    from std_msgs.msg import Header

    from anomaly_detector_ros.ros.node import AnomalyDetectorNode

OUTPUTS: tuple[str, ...] = ("obstacles", "points")
"""Topics of a camera: the obstacles, and an organised cloud of all pixels."""


class ObstacleOutputs:
    """What one camera tells of the space ahead; computed for nobody who does not listen.

    Args:
        node: owns the publishers; its parameters are in force.
        camera: the camera's name.
        transforms: where TF is looked up.
        costmap: what all cameras add to.
        warn: hears of subscribers whose QoS does not match.
    """

    def __init__(
        self,
        node: AnomalyDetectorNode,
        camera: str,
        transforms: Transforms,
        costmap: CostmapOutput,
        warn: Warn,
    ) -> None:
        self._node, self._camera, self._costmap = node, camera, costmap
        self._transforms = transforms
        self._finder = ObstacleFinder(Extrinsics(transforms, ""))
        self._depth = DepthBuffer(node.parameters["obstacles.depth_tolerance"])
        self._publishers = {
            output: advertise(node, PointCloud2, f"~/{camera}/{output}", warn) for output in OUTPUTS
        }

    def subscribe(self, listen: Callable[[type, str, Callable[[bytes], None]], None]) -> None:
        """Begins to listen to depth, by ``listen(message_type, topic, callback)``."""
        if self._node.parameters["obstacles.source"] != "ground":
            listen(Image, f"{self._camera}/depth", self._depth.put)

    def begin(self, header: Header) -> None:
        """To be called when an image's turn comes: its depth is kept from now on."""
        self._depth.watch(header.stamp.sec * 1_000_000_000 + header.stamp.nanosec)

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
        # A copy: the node may be cleaned up meanwhile.
        publishers = {
            output: publisher
            for output, publisher in dict(self._publishers).items()
            if publisher.get_subscription_count() > 0
        }
        mapped = self._costmap.wanted
        if not (publishers or mapped):
            return ""
        settings, source = self._settings(), self._node.parameters["obstacles.source"]
        try:
            depth = self._matched_depth(source)
            self._finder.extrinsics = self._extrinsics()
        except UserError as error:
            return str(error)
        trouble = ""
        if "points" in publishers:
            cloud, trouble = self._finder.organised(
                info, depth, mask, heatmap, header, settings, source
            )
            if cloud is not None:
                publishers["points"].publish(cloud_message(header, cloud))
        if "obstacles" not in publishers and not mapped:
            return trouble
        found = self._finder.find(info, depth, mask, heatmap, header, settings, source, free=mapped)
        if "obstacles" in publishers and not found.problem:
            publishers["obstacles"].publish(cloud_message(header, found.points))
        return (self._costmap.add(header, found) if mapped else found.problem) or trouble

    def reset(self) -> None:
        """Forgets the depth images seen."""
        self._depth.clear()

    def close(self) -> None:
        """Removes the publishers."""
        publishers, self._publishers = self._publishers, {}
        for publisher in publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)

    def _matched_depth(self, source: str) -> Image | None:
        data = self._depth.matched()
        if data is None or source == "ground":
            return None
        try:
            return deserialize_message(data, Image)
        except Exception as error:  # rclpy raises its own error types, not documented ones
            raise UserError(
                f"depth image cannot be deserialised: {one_line(error, 200)}"
            ) from error

    def _settings(self) -> ObstacleSettings:
        parameters = self._node.parameters
        return ObstacleSettings(
            max_range=parameters["obstacles.max_range"],
            voxel_size=parameters["obstacles.voxel_size"],
            min_pixels=parameters["obstacles.min_pixels"],
            standing=parameters["obstacles.standing"],
            ground_z=parameters["obstacles.ground_z"],
        )

    def _extrinsics(self) -> Extrinsics:
        parameters = self._node.parameters

        def own(name: str) -> Any:
            return parameters[camera_parameter(self._camera, name)]

        numbers = list(own("extrinsics"))
        return Extrinsics(
            self._transforms,
            parameters["base_frame"],
            height=own("height"),
            roll=own("roll"),
            pitch=own("pitch"),
            matrix=numbers if any(numbers) else (),
        )
