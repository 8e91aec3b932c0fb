"""The topic ``~/costmap``: from all cameras' obstacles to an occupancy grid around the robot."""

from __future__ import annotations

import array
import threading
from typing import TYPE_CHECKING

import numpy as np
from nav_msgs.msg import OccupancyGrid

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.mapping.costmap import RollingGrid
from anomaly_detector_ros.mapping.obstacle_finder import Obstacles
from anomaly_detector_ros.mapping.poses import Transforms, transform
from anomaly_detector_ros.ros.parameters import CostmapParameters
from anomaly_detector_ros.ros.qos import Output

if TYPE_CHECKING:
    from std_msgs.msg import Header

TOPIC = "~/costmap"
MOST_CELLS = 2000
"""Along each edge of the grid: 4 MB a message."""


class Costmap:
    """The grid that all cameras share. Its methods may be called from any thread.

    Args:
        output: where it is published.
        transforms: where TF is looked up.
        base_frame: the robot's base frame.
        ground_z: height of the ground in the base frame, metres.

    Raises:
        UserError: the grid would have too many cells.
    """

    def __init__(
        self,
        output: Output,
        transforms: Transforms,
        base_frame: str,
        ground_z: float,
        settings: CostmapParameters,
    ) -> None:
        if settings.size / settings.resolution > MOST_CELLS:
            raise UserError(
                f"costmap.size {settings.size:g} m in cells of {settings.resolution:g} m has over "
                f"{MOST_CELLS} cells an edge: raise costmap.resolution"
            )
        self._output, self._transforms, self._base_frame = output, transforms, base_frame
        self._ground_z, self._settings = ground_z, settings
        self._grid = RollingGrid(settings.size, settings.resolution, settings.decay)
        self._lock = threading.Lock()

    @property
    def wanted(self) -> bool:
        """Whether somebody listens."""
        return self._output.wanted

    def add(self, header: Header, obstacles: Obstacles) -> str:
        """Adds what one image showed and publishes the grid.

        Args:
            header: the image's.
            obstacles: what `ObstacleFinder.find` made of it, with free ground.

        Returns:
            Why it cannot be added, in one line; else empty.
        """
        if obstacles.problem:
            return obstacles.problem
        if obstacles.pose is None:
            return "the costmap needs the camera's pose: publish it on TF or set its height"
        stamp = header.stamp
        try:
            fixed = self._transforms.lookup(self._settings.frame, self._base_frame, stamp)
        except UserError as error:
            return f"{error}; publish it or set costmap.frame to '{self._base_frame}'"
        # In double precision: the fixed frame's origin may be a continent's.
        hits = transform(obstacles.pose, obstacles.points.astype(np.float64))
        hits = hits[hits[:, 2] - self._ground_z <= self._settings.max_height]
        misses = transform(obstacles.pose, obstacles.free.astype(np.float64))
        with self._lock:
            self._grid.update(
                stamp.sec * 1_000_000_000 + stamp.nanosec,
                (fixed[0, 3], fixed[1, 3]),
                transform(fixed, hits)[:, :2],
                transform(fixed, misses)[:, :2],
            )
        self._output.send(self.message(header))
        return ""

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._grid.clear()

    def message(self, header: Header) -> OccupancyGrid:
        """The grid as it is, stamped as the image that changed it last."""
        with self._lock:
            cells, (x, y) = self._grid.occupancy(), self._grid.origin
        made = OccupancyGrid()
        made.header.stamp = made.info.map_load_time = header.stamp
        made.header.frame_id = self._settings.frame
        made.info.resolution = float(self._settings.resolution)
        made.info.height, made.info.width = cells.shape
        made.info.origin.position.x, made.info.origin.position.y = float(x), float(y)
        made.info.origin.orientation.w = 1.0
        made.data = array.array("b", np.ascontiguousarray(cells, np.int8).tobytes())
        return made
