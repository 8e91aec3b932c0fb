"""The node's executor: callbacks that take long have a thread of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

import rclpy
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.context import Context
from rclpy.node import Node

from anomaly_detector_ros.ros.executor import NodeExecutor


@pytest.fixture
def node() -> Iterator[Node]:
    context = Context()
    rclpy.init(args=[], context=context)
    made = Node("executor_test", context=context)
    yield made
    made.destroy_node()
    rclpy.try_shutdown(context=context)


@pytest.fixture
def executor(node: Node) -> Iterator[NodeExecutor]:
    made = NodeExecutor(ReentrantCallbackGroup(), context=node.context)
    made.add_node(node)
    yield made
    made.shutdown(timeout_sec=1.0)


def once(node: Node, executor: NodeExecutor, callback) -> None:
    """Has the callback called once, as one that takes long."""

    def run() -> None:
        timer.cancel()
        callback()

    timer = node.create_timer(0.0, run, callback_group=executor._slow)


def spin_for(executor: NodeExecutor, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        executor.spin_once(timeout_sec=0.1)


def test_it_goes_on_spinning_while_a_slow_callback_runs(node: Node, executor: NodeExecutor):
    go_on, threads = threading.Event(), []

    def slow() -> None:
        threads.append(threading.current_thread())
        assert go_on.wait(10.0)

    once(node, executor, slow)
    node.create_timer(0.01, go_on.set)
    deadline = time.monotonic() + 10.0
    while not go_on.is_set() and time.monotonic() < deadline:
        executor.spin_once(timeout_sec=0.1)
    assert go_on.is_set()
    assert threads != [threading.current_thread()]


def test_what_a_slow_callback_raises_is_raised_where_it_spins(node: Node, executor: NodeExecutor):
    def broken() -> None:
        raise ZeroDivisionError("of the callback")

    once(node, executor, broken)
    with pytest.raises(ZeroDivisionError, match="of the callback"):
        spin_for(executor, 10.0)
    spin_for(executor, 0.1)  # once is enough
