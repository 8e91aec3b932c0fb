"""The costmap on the ROS graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nav_msgs.msg import OccupancyGrid

from anomaly_detector_ros.ros.costmap import Costmap, CostmapSettings
from anomaly_detector_ros.ros.extrinsics import Transforms
from anomaly_detector_ros.ros.obstacles import Obstacles
from anomaly_detector_ros.ros.qos import Conflict, advertise, latched_qos

if TYPE_CHECKING:
    from std_msgs.msg import Header

    from anomaly_detector_ros.ros.node import AnomalyDetectorNode

TOPIC = "~/costmap"


class CostmapOutput:
    """The topic ``~/costmap``, which the cameras share.

    Args:
        node: owns the publisher; its parameters are in force.
        transforms: where TF is looked up.
    """

    def __init__(self, node: AnomalyDetectorNode, transforms: Transforms) -> None:
        parameters = node.parameters
        settings = CostmapSettings(
            frame=parameters["costmap.frame"],
            size=parameters["costmap.size"],
            resolution=parameters["costmap.resolution"],
            decay=parameters["costmap.decay"],
            max_height=parameters["costmap.max_height"],
        )
        self._node = node
        self._costmap = Costmap(
            transforms, parameters["base_frame"], parameters["obstacles.ground_z"], settings
        )

        def warn(conflict: Conflict) -> None:
            node.get_logger().warning(conflict.text)

        self._publisher: Any = advertise(node, OccupancyGrid, TOPIC, warn, latched_qos())

    @property
    def wanted(self) -> bool:
        """Whether somebody listens."""
        publisher = self._publisher
        return publisher is not None and publisher.get_subscription_count() > 0

    def add(self, header: Header, obstacles: Obstacles) -> str:
        """Adds what one image showed and publishes; returns the problem in one line, or nothing."""
        problem = self._costmap.update(header, obstacles)
        publisher = self._publisher
        if not problem and publisher is not None:
            publisher.publish(self._costmap.message(header))
        return problem

    def reset(self) -> None:
        """Forgets what was seen."""
        self._costmap.clear()

    def close(self) -> None:
        """Removes the publisher."""
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            self._node.destroy_lifecycle_publisher(publisher)
