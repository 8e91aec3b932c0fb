"""Time in a live graph: simulated, standing still, running backwards, and the temporal filter."""

from __future__ import annotations

import time

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from rosgraph_msgs.msg import Clock
from support.node_client import image, picture
from support.ros_graph import Graph
from support.waiting import wait_until

SECOND = 1_000_000_000


class Player:
    """Publishes simulated time and images stamped with it, as a bag player does."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.clock = graph.client.create_publisher(Clock, "/clock", 10)

    def at(self, stamp: int) -> None:
        message = Clock()
        message.clock.sec, message.clock.nanosec = divmod(stamp, SECOND)
        self.clock.publish(message)
        wait_until(
            lambda: self.graph.node.get_clock().now().nanoseconds == stamp, f"the time {stamp}"
        )


def heat(message) -> np.ndarray:
    return np.frombuffer(message.data, np.float32)


@pytest.fixture
def replay(light_profile: str):
    graph = Graph("replay", profile=light_profile, device="cpu", use_sim_time=True)
    # It starts and answers although simulated time has not begun.
    wait_until(lambda: graph.state() == "active", "activation", timeout=120.0)
    yield graph
    graph.close()


def test_bag_loops_and_clock_jumps_are_survived(replay: Graph):
    player = Player(replay)
    masks = replay.listen_output("mask")
    count = 0
    for lap in range(3):
        for second in (100, 101, 102):
            player.at(second * SECOND)
            replay.send(image(), stamp=second * SECOND - SECOND // 5)
            count += 1
            wait_until(lambda n=count: len(masks) == n, f"a mask in lap {lap}")
    values = replay.diagnostics("camera", lambda found: found["processed"] == str(count))
    assert values["input age by"] == "stamp"
    assert float(values["input age (s)"]) == pytest.approx(0.2, abs=1e-3)
    # The clock says how old an image is: 1.5 s on it, whatever passed on the wall.
    player.at(200 * SECOND)
    replay.send(image(), stamp=198 * SECOND + SECOND // 2)
    replay.diagnostics("camera", lambda found: found["dropped: too_old"] == "1")
    # Its stamp is in the clock's future once that has jumped back.
    player.at(50 * SECOND)
    replay.send(image(), stamp=60 * SECOND)
    wait_until(lambda: len(masks) == count + 1, "the mask of an image of the future")


def test_diagnostics_go_on_while_simulated_time_stands_still(replay: Graph):
    player = Player(replay)
    player.at(7 * SECOND)
    collected = replay.heard
    collected.clear()
    wait_until(lambda: len(collected) >= 3, "diagnostics", timeout=5.0)
    assert {m.header.stamp.sec for m in collected[1:]} == {7}


def test_the_temporal_filter_averages_and_forgets(replay: Graph):
    player = Player(replay)
    heatmaps = replay.listen_output("heatmap")

    def look(second: float, pixels: np.ndarray) -> np.ndarray:
        stamp = round(second * SECOND)
        player.at(stamp)
        heatmaps.clear()
        replay.send(image(pixels), stamp=stamp)
        return heat(wait_until(lambda: list(heatmaps), "a heatmap")[0])

    first, second = picture(), picture()[::-1].copy()
    raw_1, raw_2 = look(10, first), look(11, second)
    assert np.abs(raw_1 - raw_2).max() > 0.1
    assert replay.set_parameters(temporal_filter=2.0).successful
    assert np.array_equal(look(12, first), raw_1)
    weight = 1 - np.exp(-1 / 2)
    np.testing.assert_allclose(
        look(13, second), raw_1 + weight * (raw_2 - raw_1), atol=1e-5, rtol=1e-5
    )
    # Backwards, as when a bag begins again; later than the last stamp as well.
    player.at(2 * SECOND)
    time.sleep(0.1)
    assert np.array_equal(look(14, first), raw_1)
    assert np.array_equal(look(3, second), raw_2)
    assert np.array_equal(look(60, first), raw_1)
    assert replay.set_parameters(temporal_filter=0.0).successful
    assert np.array_equal(look(61, second), raw_2)
