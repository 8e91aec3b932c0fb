"""A client beside the node: it plays a camera, listens to the outputs and asks for services."""

from __future__ import annotations

import array
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import ChangeState, GetState
from node_process import wait_until
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage, Image

NODE = "/anomaly_detector"
CAMERA = "camera"
TRANSITIONS = {"configure": 1, "cleanup": 2, "activate": 3, "deactivate": 4}
Status = dict[str, str]


class GraphClient:
    """A node of its own, spinning in a thread.

    Args:
        environment: that of the node under test; what rclpy reads of it is set here too.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        os.environ.update({k: v for k, v in environment.items() if k.startswith(("ROS_", "FAST"))})
        self._context = Context()
        rclpy.init(args=[], context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        self.node = Node("fault_run", context=self._context)
        self._executor = MultiThreadedExecutor(num_threads=3, context=self._context)
        self._executor.add_node(self.node)
        self._publishers: dict[str, Any] = {}
        self._statuses: list[dict[str, Status]] = []
        self._stamp = time.time_ns()
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        while self._context.ok():
            try:
                self._executor.spin()
            except ExternalShutdownException:
                return
            except Exception:  # a subscription that was destroyed while it was waited for
                continue

    def close(self) -> None:
        """Leaves the graph."""
        self._executor.shutdown(timeout_sec=5.0)
        self.node.destroy_node()
        rclpy.try_shutdown(context=self._context)

    # -- topics ------------------------------------------------------------------------------------

    def listen(self, output: str, message_type: type = Image, qos: QoSProfile | int = 10) -> Any:
        """A subscription to one of the camera's outputs; its ``received`` grows."""
        received: list[Any] = []
        made = self.node.create_subscription(
            message_type, f"{NODE}/{CAMERA}/{output}", received.append, qos
        )
        made.received = received
        return made

    def forget(self, subscription: Any) -> None:
        """Ends a subscription."""
        self.node.destroy_subscription(subscription)

    def publisher(self, topic: str, message_type: type) -> Any:
        """A publisher that somebody listens to."""
        made = self._publishers.get(topic)
        if made is None:
            made = self._publishers[topic] = self.node.create_publisher(message_type, topic, 10)
        if not made.get_subscription_count():
            wait_until(made.get_subscription_count, f"a subscriber on {topic}")
            time.sleep(0.2)  # the other side may learn of the match a little later
        return made

    def restart_publisher(self, topic: str, message_type: type) -> None:
        """Takes a publisher out of the graph; `publisher` makes it anew."""
        self.node.destroy_publisher(self._publishers.pop(topic))

    def send(self, message: Image | CompressedImage, stamp: int | None = None) -> tuple[int, int]:
        """Publishes an image, stamped now or with nanoseconds of choice; returns its stamp."""
        if stamp is None:
            stamp = self._stamp = max(time.time_ns(), self._stamp + 1)
        message.header.frame_id = "optical"
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 1_000_000_000)
        suffix = "" if isinstance(message, Image) else "/compressed"
        self.publisher(f"{CAMERA}/image_raw{suffix}", type(message)).publish(message)
        return message.header.stamp.sec, message.header.stamp.nanosec

    # -- services ----------------------------------------------------------------------------------

    def call(self, service_type: type, name: str, request: Any, timeout: float = 120.0) -> Any:
        """The answer of one of the node's services."""
        return self.call_async(service_type, name, request)(timeout)

    def call_async(self, service_type: type, name: str, request: Any) -> Callable[[float], Any]:
        """Asks now; the function returned waits for the answer at most so many seconds."""
        client = self.node.create_client(
            service_type, f"{NODE}/{name}", callback_group=ReentrantCallbackGroup()
        )
        wait_until(client.service_is_ready, f"the service {name}", 30.0)
        future = client.call_async(request)

        def answer(timeout: float = 120.0) -> Any:
            try:
                wait_until(future.done, f"an answer of {name}", timeout)
                return future.result()
            finally:
                self.node.destroy_client(client)

        return answer

    def has_service(self, name: str) -> bool:
        """Whether the node offers a service of that name."""
        names = dict(self.node.get_service_names_and_types_by_node("anomaly_detector", "/"))
        return f"{NODE}/{name}" in names

    def transition(self, label: str) -> bool:
        """Asks for a lifecycle transition; whether it succeeded."""
        request = ChangeState.Request()
        request.transition.id = TRANSITIONS[label]
        return bool(self.call(ChangeState, "change_state", request).success)

    def state(self) -> str:
        """The node's lifecycle state."""
        return str(self.call(GetState, "get_state", GetState.Request()).current_state.label)

    def set_parameter(self, name: str, value: Any) -> Any:
        """Asks for a parameter; the SetParametersResult."""
        request = SetParametersAtomically.Request()
        request.parameters = [Parameter(name, value=value).to_parameter_msg()]
        return self.call(SetParametersAtomically, "set_parameters_atomically", request).result

    # -- diagnostics -------------------------------------------------------------------------------

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        statuses: dict[str, Status] = {}
        for status in message.status:
            values = {pair.key: pair.value for pair in status.values}
            values |= {"message": status.message, "level": str(status.level[0])}
            statuses[status.name.partition(": ")[2]] = values
        self._statuses = [*self._statuses[-60:], statuses]

    def diagnostics(
        self, part: str, condition: Callable[[Status], Any], what: str, timeout: float = 20.0
    ) -> Status:
        """The first status of "node" or a camera, from now on, that meets the condition."""
        self._statuses = []

        def find() -> Status | None:
            return next((s[part] for s in self._statuses if part in s and condition(s[part])), None)

        found: Status = wait_until(find, f"diagnostics with {what}", timeout)
        return found


def picture(height: int = 48, width: int = 64) -> np.ndarray:
    """An RGB picture in which every pixel differs from its neighbours."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 5, columns * 3, (rows + columns) * 2], -1).astype(np.uint8)


def image(pixels: np.ndarray | None = None, **fields: Any) -> Image:
    """An rgb8 image; ``fields`` replace what would be right."""
    pixels = picture() if pixels is None else pixels
    height, width = pixels.shape[:2]
    right = {
        "height": height,
        "width": width,
        "encoding": "rgb8",
        "step": width * 3,
        "data": array.array("B", pixels.tobytes()),
    }
    return Image(**{**right, **fields})
