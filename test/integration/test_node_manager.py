"""Under a lifecycle manager: a stand-in for Nav2's, which no Python wheel carries."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from lifecycle_msgs.srv import ChangeState
from support.node_client import TRANSITIONS, image
from support.ros_graph import Graph, with_stamp
from support.waiting import wait_until

GOALS = {
    "configure": "inactive",
    "activate": "active",
    "deactivate": "inactive",
    "cleanup": "unconfigured",
}
SHUTDOWN = 5
"""lifecycle_msgs/Transition.TRANSITION_UNCONFIGURED_SHUTDOWN"""


class Manager:
    """Brings nodes up and down as nav2_lifecycle_manager does, by services alone.

    Args:
        bond_timeout: seconds; above 0 it wants a bond of an active node, within half of them, and
            gives the bring-up up without one.
    """

    def __init__(self, graph: Graph, bond_timeout: float) -> None:
        self._graph, self._bond_timeout = graph, bond_timeout
        self.problem = ""

    def _change(self, transition: str) -> bool:
        done = self._graph.transition(transition) and self._graph.state() == GOALS[transition]
        if not done:
            self.problem = "Failed to change state for node: anomaly_detector"
        return done and (transition != "activate" or self._bonded())

    def _bonded(self) -> bool:
        deadline = time.monotonic() + self._bond_timeout / 2
        while self._bond_timeout and not self._graph.client.count_publishers("/bond"):
            if time.monotonic() > deadline:
                self.problem = (
                    "Server anomaly_detector was unable to be reached after "
                    f"{self._bond_timeout:.2f}s by bond. This server may be misconfigured."
                )
                return False
            time.sleep(0.1)
        return True

    def startup(self) -> bool:
        return self._change("configure") and self._change("activate")

    def pause(self) -> bool:
        return self._change("deactivate")

    def resume(self) -> bool:
        return self._change("activate")

    def reset(self) -> bool:
        return self._change("deactivate") and self._change("cleanup")

    def shutdown(self) -> bool:
        request = ChangeState.Request()
        request.transition.id = SHUTDOWN
        ended = self.reset() and self._graph.call(ChangeState, "change_state", request).success
        return ended and self._graph.state() == "finalized"


@pytest.fixture
def managed(light_profile: str) -> Iterator[Graph]:
    graph = Graph("managed", profile=light_profile, device="cpu", autostart=False)
    yield graph
    graph.close()


def test_a_manager_without_bonds_brings_it_up_and_down(managed: Graph):
    assert set(TRANSITIONS) == set(GOALS)
    manager = Manager(managed, bond_timeout=0.0)
    assert manager.startup()
    masks = managed.listen_output("mask")
    with_stamp(masks, managed.send(image()))
    assert manager.pause()
    assert manager.resume()
    with_stamp(masks, managed.send(image()))
    assert manager.reset()
    assert manager.startup()
    with_stamp(masks, managed.send(image()))
    assert manager.shutdown()
    assert manager.problem == ""


def test_a_manager_that_wants_a_bond_gives_up_and_the_node_goes_on(managed: Graph):
    manager = Manager(managed, bond_timeout=1.0)
    assert not manager.startup()
    assert "unable to be reached after 1.00s by bond" in manager.problem
    masks = managed.listen_output("mask")
    with_stamp(masks, managed.send(image()))


def test_a_node_that_starts_by_itself_is_refused_to_its_manager(light_profile: str):
    graph = Graph("self_started", profile=light_profile, device="cpu")
    try:
        wait_until(lambda: graph.state() == "active", "activation", timeout=120.0)
        manager = Manager(graph, bond_timeout=0.0)
        assert not manager.startup()
        assert "Failed to change state" in manager.problem
        assert graph.state() == "active"
    finally:
        graph.close()
