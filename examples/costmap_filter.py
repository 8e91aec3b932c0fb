"""Cleans the detector's costmap: lone cells go, the others grow by the robot's radius.

    python examples/costmap_filter.py --ros-args -p min_cells:=4 -p radius:=0.4

Publishes ``costmap_filtered``, which Nav2's static layer can take in place of the detector's own.
"""

from __future__ import annotations

import numpy as np
import rclpy
from nav_msgs.msg import OccupancyGrid
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from scipy import ndimage

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def clean(cells: np.ndarray, occupied: int, min_cells: int, grow: int) -> np.ndarray:
    """Cells (H, W) int8, -1 unknown, 0 to 100 -> the same, filtered.

    Args:
        occupied: from this value on a cell is an obstacle.
        min_cells: smaller groups of obstacle cells become free.
        grow: by so many cells the others grow.
    """
    obstacles = cells >= occupied
    groups, count = ndimage.label(obstacles, np.ones((3, 3)))
    sizes = ndimage.sum_labels(obstacles, groups, range(count + 1))
    kept = sizes[groups] >= min_cells
    kept &= obstacles
    cleaned = np.where(obstacles & ~kept, 0, cells)
    y, x = np.ogrid[-grow : grow + 1, -grow : grow + 1]
    grown = ndimage.binary_dilation(kept, x * x + y * y <= grow * grow) if grow else kept
    cleaned[grown] = 100
    return cleaned.astype(np.int8)


class CostmapFilter(Node):
    """Passes the costmap on, filtered."""

    def __init__(self, **options: object) -> None:
        super().__init__("costmap_filter", **options)
        self.occupied = self.declare_parameter("occupied", 65).value
        self.min_cells = self.declare_parameter("min_cells", 4).value
        self.radius = self.declare_parameter("radius", 0.3).value
        self.output = self.create_publisher(OccupancyGrid, "costmap_filtered", LATCHED)
        costmap = "/anomaly_detector/costmap"
        self.create_subscription(OccupancyGrid, costmap, self.on_costmap, LATCHED)

    def on_costmap(self, grid: OccupancyGrid) -> None:
        """Filters one grid and publishes it."""
        cells = np.array(grid.data, np.int8).reshape(grid.info.height, grid.info.width)
        grow = round(self.radius / grid.info.resolution)
        grid.data = clean(cells, self.occupied, self.min_cells, grow).ravel().tolist()
        self.output.publish(grid)


def main() -> None:
    """Run until Ctrl-C."""
    rclpy.init()
    try:
        rclpy.spin(CostmapFilter())
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
