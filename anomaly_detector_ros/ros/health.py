"""Once a second: looks after the worker's thread and tells on /diagnostics how things are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType

from anomaly_detector_ros.ros.diagnostics import Status, camera_status, node_status, to_message

if TYPE_CHECKING:
    from anomaly_detector_ros.ros.camera import Camera
    from anomaly_detector_ros.ros.node import AnomalyDetectorNode

INTERVAL = 1.0


class Health:
    """Supervises and reports on a node.

    Args:
        node: the node, which keeps the publisher and the timer.

    Attributes:
        clock: steady, so that the node's own timers run whatever simulated time does.
    """

    def __init__(self, node: AnomalyDetectorNode) -> None:
        self._node = node
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.clock = Clock(clock_type=ClockType.STEADY_TIME)
        group = MutuallyExclusiveCallbackGroup()
        node.create_timer(INTERVAL, self._tick, callback_group=group, clock=self.clock)

    def _tick(self) -> None:
        session = self._node.session
        done = session.supervise() if session else ""
        if done:
            self._node.get_logger().error(done)
        if session and session.detector:
            for camera in session.cameras:
                camera.publish_labels(session.threshold(camera.name))
        prefix = self._node.get_fully_qualified_name().lstrip("/")
        named = [(f"{prefix}: node", self._of_node())]
        for camera in session.cameras if session else ():
            named.append((f"{prefix}: {camera.name}", self._of_camera(camera)))
        detector = session.detector if session else None
        hardware = str(detector.device) if detector else ""
        stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(to_message(stamp, hardware, named))

    def _of_node(self) -> Status:
        node, session = self._node, self._node.session
        if session is None:
            return node_status(node.state, node.enabled, node.fault, None, 0.0)
        return node_status(
            node.state,
            node.enabled,
            session.watchdog.problem,
            session.detector,
            session.threshold(session.cameras[0].name),
            degraded=session.degraded,
            restarts=session.watchdog.restarts,
        )

    def _of_camera(self, camera: Camera) -> Status:
        return camera_status(
            camera.counters.snapshot(),
            active=self._node.state == "active",
            enabled=self._node.enabled,
            topic=self._node.resolve_topic_name(camera.input_topic),
            publishers=camera.publisher_count(),
            qos=camera.qos_problem(),
            calibrating=self._node.calibrating.report(camera.name),
        )
