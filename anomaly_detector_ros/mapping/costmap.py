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
"""A clock that goes back by more than so many nanoseconds was set, or a simulation begins anew."""


class RollingGrid:
    """Evidence of obstacles in a square around the robot, in a frame that does not move with it.

    A cell holds log-odds: each frame adds `HIT` where it saw an anomaly, `MISS` where it saw
    nominal ground and no anomaly, within `LOWEST` and `HIGHEST`. Evidence halves with age, and a
    cell that no frame has seen for longer than the half-life is unknown again. Cells are those of
    a lattice fixed in the frame, so when the robot moves evidence is carried over whole, never
    interpolated.

    All times are nanoseconds of one clock, whatever the stamps of the frames.

    Args:
        size: edge of the square, metres.
        resolution: edge of a cell, metres.
        half_life: seconds in which evidence loses half of its weight, and after which a cell that
            is not seen any more is unknown; 0: evidence is kept.
    """

    def __init__(self, size: float, resolution: float, half_life: float) -> None:
        self.cells = max(1, round(size / resolution))
        self.resolution, self.half_life = resolution, half_life
        self._lifetime = round(half_life * 1e9)
        self._evidence = np.zeros((self.cells, self.cells), np.float32)
        self._seen_at = np.zeros(self._evidence.shape, np.int64)
        self._corner: tuple[int, int] | None = None
        self._now: int | None = None
        self._newest: int | None = None

    @property
    def origin(self) -> tuple[float, float]:
        """x and y of the grid's corner with the smallest coordinates, metres."""
        x, y = self._corner or (0, 0)
        return x * self.resolution, y * self.resolution

    def update(
        self,
        now: int,
        robot: tuple[float, float],
        hits: np.ndarray,
        misses: np.ndarray,
        seen_at: int | None = None,
    ) -> None:
        """Adds what one frame saw.

        Args:
            now: the time.
            robot: x and y of the robot when the frame was taken.
            hits: (N, 2), x and y of points on anomalies.
            misses: (M, 2), x and y of points on nominal ground.
            seen_at: when the frame was taken; None: now. Of several cameras one may come late: its
                frame counts by its age, and does not move the square back.
        """
        self.age(now)
        seen_at = now if seen_at is None else min(seen_at, now)
        age = now - seen_at
        if self._newest is None or seen_at >= self._newest:
            self._newest = seen_at
            self._centre(*robot)
        if self._lifetime and age > self._lifetime:
            return
        weight = self._weight(age)
        hit, missed = self._seen(hits), self._seen(misses)
        missed &= ~hit
        self._evidence[hit] += HIT * weight
        self._evidence[missed] += MISS * weight
        np.clip(self._evidence, LOWEST, HIGHEST, out=self._evidence)
        seen = hit | missed
        self._seen_at[seen] = np.maximum(self._seen_at[seen], seen_at)

    def age(self, now: int) -> None:
        """Lets evidence fade until now; everything goes where the clock was set back."""
        if self._now is not None and now < self._now - CLOCK_RESET:
            self.clear()
        elapsed = 0 if self._now is None else now - self._now
        if elapsed > 0:
            self._evidence *= np.float32(self._weight(elapsed))
        if self._lifetime:
            self._evidence[self._seen_at < now - self._lifetime] = 0.0
        if elapsed >= 0:
            self._now = now

    def clear(self) -> None:
        """Forgets everything."""
        self._evidence[:] = 0.0
        self._seen_at[:] = 0
        self._corner = self._now = self._newest = None

    def occupancy(self) -> np.ndarray:
        """The probability of an obstacle: int8 (rows of y, columns of x), 0 to 100, -1 unknown."""
        percent = np.rint(100.0 / (1.0 + np.exp(-self._evidence))).astype(np.int8)
        percent[np.abs(self._evidence) < FORGOTTEN] = UNKNOWN
        return percent

    def _weight(self, age: int) -> float:
        return 0.5 ** (age * 1e-9 / self.half_life) if self._lifetime else 1.0

    def _centre(self, x: float, y: float) -> None:
        """Moves the window by whole cells so that the robot is in its middle cell."""
        half = self.cells // 2
        corner = (
            int(np.floor(x / self.resolution)) - half,
            int(np.floor(y / self.resolution)) - half,
        )
        if self._corner is not None and corner != self._corner:
            across, up = corner[0] - self._corner[0], corner[1] - self._corner[1]
            self._evidence = _shifted(self._evidence, across, up)
            self._seen_at = _shifted(self._seen_at, across, up)
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


def _shifted(cells: np.ndarray, across: int, up: int) -> np.ndarray:
    """A square array (N, N) after its window has moved by so many columns and rows; 0 elsewhere."""
    moved = np.zeros_like(cells)
    rows, old_rows = _overlap(up, len(cells))
    columns, old_columns = _overlap(across, len(cells))
    moved[rows, columns] = cells[old_rows, old_columns]
    return moved


def _overlap(shift: int, cells: int) -> tuple[slice, slice]:
    """What two windows of ``cells`` share when the second is ``shift`` further: new and old."""
    kept = max(0, cells - abs(shift))
    new = slice(max(0, -shift), max(0, -shift) + kept) if kept else slice(0, 0)
    old = slice(max(0, shift), max(0, shift) + kept) if kept else slice(0, 0)
    return new, old
