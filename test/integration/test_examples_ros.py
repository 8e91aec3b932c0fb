"""The nodes of examples/, called as ROS would call them; nothing has to be discovered."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rclpy
from geometry_msgs.msg import Twist
from nav_msgs.msg import OccupancyGrid
from rclpy.context import Context
from sensor_msgs.msg import PointCloud2
from support.ros_graph import DOMAIN

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="not a source checkout")


@pytest.fixture
def context() -> Iterator[Context]:
    made = Context()
    rclpy.init(args=[], context=made, domain_id=DOMAIN)
    yield made
    rclpy.try_shutdown(context=made)


class Sent:
    """Stands for a publisher."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    def publish(self, message: Any) -> None:
        self.messages.append(message)


def cloud(*points: tuple[float, float, float]) -> PointCloud2:
    data = np.array([(*point, 1.0) for point in points], np.float32)
    return PointCloud2(point_step=16, width=len(points), data=data.tobytes())


def forward(speed: float) -> Twist:
    wanted = Twist()
    wanted.linear.x = speed
    return wanted


def test_the_robot_stops_for_an_anomaly_ahead_and_for_silence(context: Context) -> None:
    node = runpy.run_path(str(EXAMPLES / "stop_robot.py"))["StopRobot"](context=context)
    node.output = sent = Sent()

    def speed_after(wanted: float) -> float:
        node.on_velocity(forward(wanted))
        return sent.messages[-1].linear.x

    assert speed_after(1.0) == 0.0  # nothing was heard yet
    node.on_cloud(cloud())
    assert speed_after(1.0) == 1.0
    node.on_cloud(cloud((0.1, 0.0, 1.5)))
    assert speed_after(1.0) == 0.0
    assert speed_after(-1.0) == -1.0
    node.on_cloud(cloud((1.0, 0.0, 1.5), (0.0, 0.0, 5.0)))  # beside the way, and far off
    assert speed_after(1.0) == 1.0
    node.timeout = 0.0
    assert speed_after(1.0) == 0.0
    assert speed_after(-1.0) == 0.0
    node.destroy_node()


def test_the_costmap_loses_lone_cells_and_grows_the_others(context: Context) -> None:
    node = runpy.run_path(str(EXAMPLES / "costmap_filter.py"))["CostmapFilter"](context=context)
    node.output = sent = Sent()
    node.radius = 0.1
    cells = np.full((8, 9), -1, np.int8)
    cells[1, 1] = 97  # alone
    cells[4:6, 4:6] = 70
    grid = OccupancyGrid()
    grid.info.height, grid.info.width, grid.info.resolution = 8, 9, 0.1
    grid.data = cells.ravel().tolist()
    node.on_costmap(grid)
    filtered = np.array(sent.messages[0].data).reshape(8, 9)
    assert filtered[1, 1] == 0
    assert (filtered[4:6, 3:7] == 100).all()
    assert (filtered[3:7, 4:6] == 100).all()
    assert filtered[3, 3] == -1
    node.destroy_node()
