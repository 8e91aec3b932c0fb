"""Stops the robot when an anomaly is ahead, or when the detector falls silent.

    ros2 run ...                      # your driver publishes /camera/image_raw and camera_info
    ros2 launch anomaly_detector_ros anomaly_detector.launch.py
    python examples/stop_robot.py --ros-args -p distance:=2.0 -r cmd_vel_in:=/planner/cmd_vel

Velocities come in on ``cmd_vel_in`` and go out on ``cmd_vel``.
"""

from __future__ import annotations

import numpy as np
import rclpy
from geometry_msgs.msg import Twist
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from sensor_msgs.msg import PointCloud2


def anomaly_ahead(cloud: PointCloud2, distance: float, width: float) -> bool:
    """Whether a point of the cloud is nearer than ``distance`` and in the way, metres.

    The cloud is in the camera's optical frame: x points right, z forward.
    """
    points = np.frombuffer(cloud.data, np.float32).reshape(-1, cloud.point_step // 4)
    x, z = points[:, 0], points[:, 2]
    return bool(((z > 0) & (z < distance) & (np.abs(x) < width / 2)).any())


class StopRobot(Node):
    """Passes velocities on while the way is free."""

    def __init__(self, **options: object) -> None:
        super().__init__("stop_robot", **options)
        self.distance = self.declare_parameter("distance", 2.0).value
        self.width = self.declare_parameter("width", 0.8).value
        self.timeout = self.declare_parameter("timeout", 3.0).value
        self.blocked, self.heard = True, None
        self.output = self.create_publisher(Twist, "cmd_vel", 1)
        cloud = "/anomaly_detector/camera/obstacles"
        self.create_subscription(PointCloud2, cloud, self.on_cloud, 1)
        self.create_subscription(Twist, "cmd_vel_in", self.on_velocity, 1)

    def on_cloud(self, cloud: PointCloud2) -> None:
        """Looks whether something is in the way."""
        self.heard = self.get_clock().now()
        blocked = anomaly_ahead(cloud, self.distance, self.width)
        if blocked != self.blocked:
            self.get_logger().info("an anomaly is ahead: stop" if blocked else "the way is free")
        self.blocked = blocked

    def on_velocity(self, wanted: Twist) -> None:
        """Passes a velocity on, or stands still; turning and going back stay allowed."""
        silent = (
            self.heard is None
            or (self.get_clock().now() - self.heard).nanoseconds > self.timeout * 1e9
        )
        if silent:  # no news is not good news
            wanted = Twist()
        elif self.blocked:
            wanted.linear.x = min(wanted.linear.x, 0.0)
        self.output.publish(wanted)


def main() -> None:
    """Run until Ctrl-C."""
    rclpy.init()
    try:
        rclpy.spin(StopRobot())
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
