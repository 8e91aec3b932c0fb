"""A live ROS graph in this process: the detector's node, and a client that sends and listens."""

from __future__ import annotations

import array
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import DescribeParameters, SetParametersAtomically
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.context import Context
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from anomaly_detector_ros.demo.processes import own_domain
from anomaly_detector_ros.ros.executor import NodeExecutor
from anomaly_detector_ros.ros.main import spin
from anomaly_detector_ros.ros.node import AnomalyDetectorNode

# Of this machine only, and apart from other graphs on it.
DOMAIN = own_domain()
# Humble knows only the older variable, later releases warn of it.
LOCAL_ONLY = (
    {"ROS_LOCALHOST_ONLY": "1"}
    if os.environ.get("ROS_DISTRO") == "humble"
    else {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
)
TRANSITIONS = {"configure": 1, "cleanup": 2, "activate": 3, "deactivate": 4}


def child_environment() -> dict[str, str]:
    """Environment of a process that shall see this graph."""
    return {
        **os.environ,
        **LOCAL_ONLY,
        "ROS_DOMAIN_ID": str(DOMAIN),
        "PYTHONUNBUFFERED": "1",
    }


def wait_until(condition: Callable[[], Any], what: str, timeout: float = 30.0) -> Any:
    """The condition's value once it is true; fails the test after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout:g} s for {what}"
        time.sleep(0.01)
    return value


def with_stamp(messages: list[Any], stamp: tuple[int, int]) -> Any:
    """The message of that header stamp, as soon as it has come."""

    def find() -> Any:
        return next(
            (m for m in list(messages) if (m.header.stamp.sec, m.header.stamp.nanosec) == stamp),
            None,
        )

    return wait_until(find, f"a message stamped {stamp}")


def values(message: Image) -> np.ndarray:
    """Pixels of an output, read as its encoding says."""
    dtype = {"32FC1": np.float32, "mono8": np.uint8, "16UC1": np.uint16, "rgb8": np.uint8}
    pixels = np.frombuffer(message.data, dtype[message.encoding])
    assert message.step * message.height == len(message.data)
    channels = (3,) if message.encoding == "rgb8" else ()
    return pixels.reshape(message.height, message.width, *channels)


class Graph:
    """The node under test and a client, spinning in a thread.

    Args:
        parameters: the node's, by name.
        namespace: keeps the tests of one process apart.
    """

    def __init__(self, namespace: str, **parameters: Any) -> None:
        os.environ.update(LOCAL_ONLY)
        self.context = Context()
        rclpy.init(
            args=[],
            context=self.context,
            domain_id=DOMAIN,
            signal_handler_options=SignalHandlerOptions.NO,
        )
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        self.node = AnomalyDetectorNode(
            context=self.context, namespace=namespace, parameter_overrides=overrides
        )
        self.client = Node("client", context=self.context, namespace=namespace)
        self.base = f"{self.client.get_namespace()}/anomaly_detector"
        self.messages: dict[str, list[Any]] = {}
        self._publishers: dict[str, Any] = {}
        self._stamp = time.time_ns()
        self._executor = NodeExecutor(self.node.transitions, context=self.context)
        for node in (self.node, self.client):
            self._executor.add_node(node)
        self._thread = threading.Thread(target=spin, args=(self._executor, self.node), daemon=True)
        self._thread.start()
        self.listen("/diagnostics", DiagnosticArray)

    def close(self) -> None:
        """Ends the graph."""
        self.node.close(5.0)
        self._executor.shutdown(timeout_sec=5.0)
        self._thread.join(5.0)
        for node in (self.node, self.client):
            node.destroy_node()
        rclpy.try_shutdown(context=self.context)

    # -- topics ------------------------------------------------------------------------------------

    def listen(self, topic: str, message_type: type, qos: QoSProfile | int = 10) -> list[Any]:
        """Collects a topic's messages from now on; the list grows."""
        self.messages[topic] = []
        self.client.create_subscription(message_type, topic, self.messages[topic].append, qos)
        return self.messages[topic]

    def listen_output(
        self, output: str, message_type: type = Image, camera: str = "camera"
    ) -> list[Any]:
        """Collects an output of a camera from now on."""
        topic = f"{self.base}/{camera}/{output}"
        collected = self.listen(topic, message_type)
        wait_until(lambda: self.client.count_publishers(topic), f"a publisher on {topic}")
        time.sleep(0.2)
        return collected

    def publisher(self, topic: str, message_type: type) -> Any:
        """A RELIABLE publisher that the node listens to."""
        if topic not in self._publishers:
            made = self.client.create_publisher(message_type, topic, 10)
            wait_until(made.get_subscription_count, f"a subscriber on {topic}")
            self._publishers[topic] = made
        return self._publishers[topic]

    def send(
        self, message: Image | CompressedImage, stamp: int | None = None, camera: str = "camera"
    ) -> tuple[int, int]:
        """Publishes an image, stamped now unless told otherwise; returns its stamp."""
        if stamp is None:
            stamp = max(time.time_ns(), self._stamp + 1)
            self._stamp = stamp
        message.header.frame_id = "optical"
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 1_000_000_000)
        raw = isinstance(message, Image)
        topic = f"{camera}/image_raw" if raw else f"{camera}/image_raw/compressed"
        self.publisher(topic, type(message)).publish(message)
        return message.header.stamp.sec, message.header.stamp.nanosec

    def send_info(self, info: CameraInfo) -> None:
        """Publishes a camera_info."""
        self.publisher("camera/camera_info", CameraInfo).publish(info)

    # -- services ----------------------------------------------------------------------------------

    def call(self, service_type: type, name: str, request: Any) -> Any:
        """The response of one of the node's services, by the service's name below the node's."""
        group = ReentrantCallbackGroup()
        client = self.client.create_client(
            service_type, f"{self.base}/{name}", callback_group=group
        )
        try:
            assert client.wait_for_service(timeout_sec=10.0), f"no service {name}"
            future = client.call_async(request)
            wait_until(future.done, f"an answer of {name}", timeout=60.0)
            return future.result()
        finally:
            self.client.destroy_client(client)

    def transition(self, label: str) -> bool:
        """Asks for a lifecycle transition; returns whether it succeeded."""
        request = ChangeState.Request()
        request.transition.id = TRANSITIONS[label]
        return self.call(ChangeState, "change_state", request).success

    def state(self) -> str:
        """The node's lifecycle state."""
        return self.call(GetState, "get_state", GetState.Request()).current_state.label

    def set_parameters(self, **values: Any) -> Any:
        """Sets parameters at once; returns the SetParametersResult."""
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

    def diagnostics(self, part: str, condition: Callable[[Any, dict[str, str]], bool]) -> Any:
        """The first status of a part ("node" or a camera) from now on that meets the condition.

        The condition gets the status and its values by key.
        """
        collected = self.messages["/diagnostics"]
        collected.clear()
        name = f"{self.base.lstrip('/')}: {part}"

        def find() -> Any:
            for message in list(collected):
                for status in message.status:
                    values = {pair.key: pair.value for pair in status.values}
                    if status.name == name and condition(status, values):
                        return status
            return None

        return wait_until(find, f"such diagnostics of {name}")

    def counts(self, camera: str = "camera") -> dict[str, int]:
        """A camera's counters, from the diagnostics."""
        status = self.diagnostics(camera, lambda status, values: "received" in values)
        return {
            pair.key.removeprefix("dropped: "): int(pair.value)
            for pair in status.values
            if pair.key in ("received", "processed", "pending") or pair.key.startswith("dropped: ")
        }


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
