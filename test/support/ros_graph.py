"""A live ROS graph in this process: the detector's node, and a client that sends and listens."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import rclpy
from rclpy.context import Context
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image
from support.node_client import NodeClient
from support.waiting import wait_until

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


def child_environment() -> dict[str, str]:
    """Environment of a process that shall see this graph."""
    return {
        **os.environ,
        **LOCAL_ONLY,
        "ROS_DOMAIN_ID": str(DOMAIN),
        "PYTHONUNBUFFERED": "1",
    }


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


class Graph(NodeClient):
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
        client = Node("client", context=self.context, namespace=namespace)
        super().__init__(client, f"{client.get_namespace()}/anomaly_detector")
        self._executor = NodeExecutor(self.node.transitions, context=self.context)
        for node in (self.node, client):
            self._executor.add_node(node)
        self._thread = threading.Thread(target=spin, args=(self._executor, self.node), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the graph."""
        self.node.close(5.0)
        self._executor.shutdown(timeout_sec=5.0)
        self._thread.join(5.0)
        for node in (self.node, self.client):
            node.destroy_node()
        rclpy.try_shutdown(context=self.context)
