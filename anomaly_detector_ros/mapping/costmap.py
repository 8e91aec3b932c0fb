"""An occupancy grid that travels with the robot."""

from __future__ import annotations

import numpy as np

HIT, MISS = 0.85, -0.4
"""Log-odds that one frame adds to a cell where it saw an anomaly or nominal ground."""
LOWEST, HIGHEST = -2.0, 3.5
"""Bounds of a cell's log-odds: so few frames change a cell's mind, however long it was certain."""
FORGOTTEN = 0.05
"""Below this, up or down, nothing is left of a cell's evidence."""
UNKNOWN = -1
CLOCK_RESET = 2_000_000_000
"""A stamp further than so many nanoseconds before the newest one is another run's: a bag that
starts again or a simulation that was reset. Less is a camera whose image took longer."""


class RollingGrid:
    """Evidence of obstacles in a square around the robot, in a frame that does not move with it.

    A cell holds log-odds: each frame adds `HIT` where it saw an anomaly, `MISS` where it saw
    nominal ground and no anomaly, within `LOWEST` and `HIGHEST`; time halves what is known. Cells
    are those of a lattice fixed in the frame, so when the robot moves evidence is carried over
    whole, never interpolated.

    Args:
        size: edge of the square, metres.
        resolution: edge of a cell, metres.
        half_life: seconds in which evidence loses half of its weight; 0: it is kept.
    """

    def __init__(self, size: float, resolution: float, half_life: float) -> None:
        self.cells = max(1, round(size / resolution))
        self.resolution, self.half_life = resolution, half_life
        self._evidence = np.zeros((self.cells, self.cells), np.float32)
        self._corner: tuple[int, int] | None = None
        self._stamp: int | None = None

    @property
    def origin(self) -> tuple[float, float]:
        """x and y of the grid's corner with the smallest coordinates, metres."""
        x, y = self._corner or (0, 0)
        return x * self.resolution, y * self.resolution

    def update(
        self, stamp: int, robot: tuple[float, float], hits: np.ndarray, misses: np.ndarray
    ) -> None:
        """Adds what one frame saw.

        Args:
            stamp: the frame's, nanoseconds. Only differences count; see `CLOCK_RESET` for stamps
                that go back.
            robot: x and y of the robot at that time.
            hits: (N, 2), x and y of points on anomalies.
            misses: (M, 2), x and y of points on nominal ground.
        """
        if self._stamp is not None and stamp < self._stamp - CLOCK_RESET:
            self.clear()
        if self._stamp is None or stamp >= self._stamp:
            self._decay(0 if self._stamp is None else stamp - self._stamp)
            self._stamp = stamp
            self._centre(*robot)
        hit, missed = self._seen(hits), self._seen(misses)
        missed &= ~hit
        self._evidence[hit] += HIT
        self._evidence[missed] += MISS
        np.clip(self._evidence, LOWEST, HIGHEST, out=self._evidence)

    def clear(self) -> None:
        """Forgets everything."""
        self._evidence[:] = 0.0
        self._corner, self._stamp = None, None

    def occupancy(self) -> np.ndarray:
        """The probability of an obstacle: int8 (rows of y, columns of x), 0 to 100, -1 unknown."""
        percent = np.rint(100.0 / (1.0 + np.exp(-self._evidence))).astype(np.int8)
        percent[np.abs(self._evidence) < FORGOTTEN] = UNKNOWN
        return percent

    def _decay(self, elapsed: int) -> None:
        if self.half_life > 0.0 and elapsed > 0:
            self._evidence *= np.float32(0.5 ** (elapsed * 1e-9 / self.half_life))

    def _centre(self, x: float, y: float) -> None:
        """Moves the window by whole cells so that the robot is in its middle cell."""
        half = self.cells // 2
        corner = (
            int(np.floor(x / self.resolution)) - half,
            int(np.floor(y / self.resolution)) - half,
        )
        if self._corner is not None and corner != self._corner:
            across, up = corner[0] - self._corner[0], corner[1] - self._corner[1]
            moved = np.zeros_like(self._evidence)
            rows, old_rows = _overlap(up, self.cells)
            columns, old_columns = _overlap(across, self.cells)
            moved[rows, columns] = self._evidence[old_rows, old_columns]
            self._evidence = moved
        self._corner = corner

    def _seen(self, points: np.ndarray) -> np.ndarray:
        """The cells that hold a point: bool (cells, cells)."""
        seen = np.zeros(self._evidence.shape, bool)
        points = np.asarray(points, np.float64)
        cells = np.floor(points[np.isfinite(points).all(axis=1)] / self.resolution)
        cells -= self._corner or (0, 0)
        cells = cells[((cells >= 0) & (cells < self.cells)).all(axis=1)].astype(np.intp)
        seen[cells[:, 1], cells[:, 0]] = True
        return seen


def _overlap(shift: int, cells: int) -> tuple[slice, slice]:
    """What two windows of ``cells`` share when the second is ``shift`` further: new and old."""
    kept = max(0, cells - abs(shift))
    new = slice(max(0, -shift), max(0, -shift) + kept) if kept else slice(0, 0)
    old = slice(max(0, shift), max(0, shift) + kept) if kept else slice(0, 0)
    return new, old
