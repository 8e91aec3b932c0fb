"""The topic ``~/costmap``: from all cameras' obstacles to an occupancy grid around the robot."""

from __future__ import annotations

import array
import threading
import time

import numpy as np
from builtin_interfaces.msg import Time
from nav_msgs.msg import OccupancyGrid

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.mapping.costmap import UNKNOWN, RollingGrid
from anomaly_detector_ros.mapping.obstacle_finder import Obstacles
from anomaly_detector_ros.mapping.poses import Taken, Transforms, transform
from anomaly_detector_ros.ros.output import Output
from anomaly_detector_ros.ros.parameters import CostmapParameters

TOPIC = "~/costmap"
MOST_CELLS = 2000
"""Along each edge of the grid: 4 MB a message."""
REFRESH = 0.9
"""Seconds without an image after which `Costmap.refresh` publishes."""


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
        self._shown, self._sent = 0.0, 0.0  # share of the cells known as last published, and when

    def share(self) -> Output:
        """The topic, with a state of one camera's own: whether that adds what it sees."""
        return self._output.twin()

    def add(self, now: int, taken: Taken, obstacles: Obstacles) -> OccupancyGrid:
        """Adds what one image showed.

        Args:
            now: the node's clock, nanoseconds.
            taken: where and when the image was.
            obstacles: what `ObstacleFinder.find` made of it, with free ground.

        Returns:
            The grid, to be published.

        Raises:
            UserError: it cannot be added.
        """
        if obstacles.pose is None:
            raise UserError(
                "the costmap needs the camera's pose: publish it on TF or set its height"
            )
        try:
            fixed = self._transforms.lookup(self._settings.frame, self._base_frame, taken.moments)
        except UserError as error:
            raise UserError(
                f"{error}; publish it or set costmap.frame to '{self._base_frame}'"
            ) from error
        # In double precision: the fixed frame's origin may be a continent's.
        hits = transform(obstacles.pose, obstacles.points.astype(np.float64))
        hits = hits[hits[:, 2] - self._ground_z <= self._settings.max_height]
        misses = transform(obstacles.pose, obstacles.free.astype(np.float64))
        with self._lock:
            self._grid.update(
                now,
                (fixed[0, 3], fixed[1, 3]),
                transform(fixed, hits)[:, :2],
                transform(fixed, misses)[:, :2],
                taken.seen_at,
            )
        return self._message(taken.seen_at)

    def refresh(self, now: int) -> None:
        """Tells, where no image does, that what is not seen any more is not known any more.

        To be called once a second with the node's clock, nanoseconds. Silence is then no free
        space: not for those who listen, nor for those who will get the latched grid.
        """
        if not self._shown or time.monotonic() - self._sent < REFRESH:
            return
        with self._lock:
            self._grid.age(now)
        self._output.send(self._message(now))

    def clear(self, now: int) -> None:
        """Forgets everything and says so."""
        with self._lock:
            self._grid.clear()
        if self._shown:
            self._output.send(self._message(now))

    def values(self) -> dict[str, str]:
        """For the diagnostics."""
        values = {"frame": self._settings.frame, "known (%)": f"{100 * self._shown:.1f}"}
        if self._shown:
            values["last published (s ago)"] = f"{time.monotonic() - self._sent:.1f}"
        return values

    def _message(self, stamp: int) -> OccupancyGrid:
        """The grid as it is."""
        with self._lock:
            cells, (x, y) = self._grid.occupancy(), self._grid.origin
        self._shown, self._sent = float((cells != UNKNOWN).mean()), time.monotonic()
        made = OccupancyGrid()
        sec, nanosec = divmod(stamp, 1_000_000_000)
        made.header.stamp = made.info.map_load_time = Time(sec=sec, nanosec=nanosec)
        made.header.frame_id = self._settings.frame
        made.info.resolution = float(self._settings.resolution)
        made.info.height, made.info.width = cells.shape
        made.info.origin.position.x, made.info.origin.position.y = float(x), float(y)
        made.info.origin.orientation.w = 1.0
        made.data = array.array("b", np.ascontiguousarray(cells, np.int8).tobytes())
        return made
