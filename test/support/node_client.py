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
from rcl_interfaces.srv import DescribeParameters, SetParametersAtomically
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from support.waiting import wait_until

NODE = "/anomaly_detector"
CAMERA = "camera"
TRANSITIONS = {"configure": 1, "cleanup": 2, "activate": 3, "deactivate": 4}
Status = dict[str, str]
"""A status of the diagnostics: its values, its "message", and its "level" as a digit."""


class Received(list[Any]):
    """A topic's messages so far; it grows while the client spins."""

    subscription: Any


class NodeClient:
    """Talks to a node under test. Whoever makes it spins its node.

    Args:
        client: the node that talks.
        base: fully qualified name of the node under test.

    Attributes:
        heard: the last messages of /diagnostics.
    """

    def __init__(self, client: Node, base: str = NODE) -> None:
        self.client, self.base = client, base
        self._publishers: dict[str, Any] = {}
        self._stamp = time.time_ns()
        self.heard = self.listen("/diagnostics", DiagnosticArray)

    # -- topics ------------------------------------------------------------------------------------

    def output(self, name: str, camera: str = CAMERA) -> str:
        """The topic of one of a camera's outputs."""
        return f"{self.base}/{camera}/{name}"

    def listen(self, topic: str, kind: type = Image, qos: QoSProfile | int = 10) -> Received:
        """Collects a topic's messages from now on."""
        received = Received()
        received.subscription = self.client.create_subscription(kind, topic, received.append, qos)
        return received

    def listen_output(self, name: str, kind: type = Image, camera: str = CAMERA) -> Received:
        """Collects an output of a camera from now on, once the node publishes it."""
        topic = self.output(name, camera)
        received = self.listen(topic, kind)
        wait_until(lambda: self.client.count_publishers(topic), f"a publisher on {topic}")
        time.sleep(0.2)
        return received

    def forget(self, received: Received) -> None:
        """Ends a subscription."""
        self.client.destroy_subscription(received.subscription)

    def publisher(self, topic: str, kind: type) -> Any:
        """A reliable publisher that somebody listens to."""
        made = self._publishers.get(topic)
        if made is None:
            made = self._publishers[topic] = self.client.create_publisher(kind, topic, 10)
        if not made.get_subscription_count():
            wait_until(made.get_subscription_count, f"a subscriber on {topic}")
            time.sleep(0.2)  # the other side may learn of the match a little later
        return made

    def restart_publisher(self, topic: str) -> None:
        """Takes a publisher out of the graph; `publisher` makes it anew."""
        self.client.destroy_publisher(self._publishers.pop(topic))

    def send(
        self, message: Image | CompressedImage, stamp: int | None = None, camera: str = CAMERA
    ) -> tuple[int, int]:
        """Publishes an image, stamped now or with nanoseconds of choice; returns its stamp."""
        if stamp is None:
            stamp = self._stamp = max(time.time_ns(), self._stamp + 1)
        message.header.frame_id = "optical"
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 1_000_000_000)
        suffix = "" if isinstance(message, Image) else "/compressed"
        self.publisher(f"{camera}/image_raw{suffix}", type(message)).publish(message)
        return message.header.stamp.sec, message.header.stamp.nanosec

    def send_info(self, info: CameraInfo) -> None:
        """Publishes a camera_info."""
        self.publisher(f"{CAMERA}/camera_info", CameraInfo).publish(info)

    # -- services ----------------------------------------------------------------------------------

    def call(self, service_type: type, name: str, request: Any, timeout: float = 120.0) -> Any:
        """The answer of one of the node's services, by the service's name below the node's."""
        return self.call_async(service_type, name, request)(timeout)

    def call_async(self, service_type: type, name: str, request: Any) -> Callable[[float], Any]:
        """Asks now; the function returned waits for the answer at most so many seconds."""
        client = self.client.create_client(
            service_type, f"{self.base}/{name}", callback_group=ReentrantCallbackGroup()
        )
        wait_until(client.service_is_ready, f"the service {name}", 30.0)
        future = client.call_async(request)

        def answer(timeout: float = 120.0) -> Any:
            try:
                wait_until(future.done, f"an answer of {name}", timeout)
                return future.result()
            finally:
                self.client.destroy_client(client)

        return answer

    def has_service(self, name: str) -> bool:
        """Whether the node offers a service of that name."""
        namespace, _, own = self.base.rpartition("/")
        offered = self.client.get_service_names_and_types_by_node(own, namespace or "/")
        return f"{self.base}/{name}" in dict(offered)

    def transition(self, label: str) -> bool:
        """Asks for a lifecycle transition; whether it succeeded."""
        request = ChangeState.Request()
        request.transition.id = TRANSITIONS[label]
        return bool(self.call(ChangeState, "change_state", request).success)

    def state(self) -> str:
        """The node's lifecycle state."""
        return str(self.call(GetState, "get_state", GetState.Request()).current_state.label)

    def set_parameters(self, **values: Any) -> Any:
        """Sets parameters at once; the SetParametersResult."""
        request = SetParametersAtomically.Request()
        request.parameters = [
            Parameter(name, value=value).to_parameter_msg() for name, value in values.items()
        ]
        return self.call(SetParametersAtomically, "set_parameters_atomically", request).result

    def describe(self, names: list[str]) -> Any:
        """The descriptors of parameters."""
        request = DescribeParameters.Request(names=names)
        return self.call(DescribeParameters, "describe_parameters", request).descriptors

    # -- diagnostics -------------------------------------------------------------------------------

    def diagnostics(
        self,
        part: str,
        condition: Callable[[Status], Any],
        what: str = "what is awaited",
        timeout: float = 30.0,
    ) -> Status:
        """The first status of "node" or a camera, from now on, that meets the condition."""
        self.heard.clear()
        name = f"{self.base.lstrip('/')}: {part}"

        def find() -> Status | None:
            for message in list(self.heard):
                for status in message.status:
                    if status.name == name:
                        found = {pair.key: pair.value for pair in status.values}
                        found |= {"message": status.message, "level": str(status.level[0])}
                        if condition(found):
                            return found
            del self.heard[:-60]
            return None

        found: Status = wait_until(find, f"diagnostics of {name} with {what}", timeout)
        return found

    def counts(self, camera: str = CAMERA) -> dict[str, int]:
        """A camera's counters, from the diagnostics."""
        found = self.diagnostics(camera, lambda status: "received" in status)
        return {
            key.removeprefix("dropped: "): int(value)
            for key, value in found.items()
            if key in ("received", "processed", "pending") or key.startswith("dropped: ")
        }


class LoneClient(NodeClient):
    """A client with a context and a thread of its own, of a node in another process.

    Args:
        environment: that of the node under test; what rclpy reads of it is set here too.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        os.environ.update({k: v for k, v in environment.items() if k.startswith(("ROS_", "FAST"))})
        self._context = Context()
        rclpy.init(args=[], context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        super().__init__(Node("lone_client", context=self._context))
        self._executor = MultiThreadedExecutor(num_threads=3, context=self._context)
        self._executor.add_node(self.client)
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
        self.client.destroy_node()
        rclpy.try_shutdown(context=self._context)


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
