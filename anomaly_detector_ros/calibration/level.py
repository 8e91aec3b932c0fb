"""How high the scores of a camera's last frames lie, whatever is in them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

import numpy as np

FRAMES = 15
"""So many frames of a stream count: a new light is taken in after half of them."""
GAP = 30.0
"""After so many seconds without a frame a stream starts anew."""
# The median of a smooth map is known well from so many of its pixels.
_PIXELS = 20_000


def frame_level(raw: np.ndarray) -> float:
    """A frame's own level: the median of its raw anomaly map (H, W)."""
    step = max(1, int(np.sqrt(raw.size / _PIXELS)))
    return float(np.median(raw[::step, ::step]))


def level_among(own: float, before: Sequence[float]) -> float:
    """The level that is taken off a frame's scores: the median of its own and those before it.

    The light of a scene moves all scores of a frame alike, and its own level follows. That would
    also follow an anomaly that fills half of the image, which a few frames before it do not know.
    """
    return float(np.median([own, *before]))


class StreamLevels:
    """The own levels of one camera's last frames, oldest first.

    They start anew with a stamp that is not later than the last one, and after `GAP`.

    Args:
        levels: those known already.
        stamp: of the last of them, nanoseconds.

    Example:
        >>> levels = StreamLevels()
        >>> for second in range(3):
        ...     levels.add(0.2, stamp=second * 10**9)
        >>> level_among(0.9, levels.before(stamp=3 * 10**9))
        0.2
    """

    def __init__(self, levels: Sequence[float] = (), stamp: int = 0) -> None:
        self._levels = deque(levels, FRAMES - 1)
        self._stamp = stamp

    @property
    def state(self) -> tuple[list[float], int]:
        """What makes the same levels again, given to the constructor."""
        return list(self._levels), self._stamp

    def before(self, stamp: int) -> tuple[float, ...]:
        """The levels that count for a frame of this stamp, nanoseconds."""
        goes_on = 0 < (stamp - self._stamp) * 1e-9 <= GAP
        return tuple(self._levels) if goes_on else ()

    def add(self, own: float, stamp: int) -> None:
        """Takes the level of a frame that was looked at."""
        if not self.before(stamp):
            self._levels.clear()
        self._levels.append(own)
        self._stamp = stamp

    def reset(self) -> None:
        """Forgets the frames seen."""
        self._levels.clear()


def levels_before(frame: int, look: Callable[[int], Iterable[tuple[float, int]]]) -> StreamLevels:
    """The levels that a stream has when it comes to a frame, known from few frames before it.

    Args:
        frame: its number in the stream, from 0.
        look: gives level and stamp of each good frame from the given number on, up to `frame`.
    """
    count = FRAMES - 1
    while True:
        first, levels, good = max(0, frame - count), StreamLevels(), 0
        for level, stamp in look(first):
            levels.add(level, stamp)
            good += 1
        # Nothing further back counts: there is nothing, the levels are full, or they began anew.
        if first == 0 or good >= FRAMES - 1 or good > len(levels.state[0]):
            return levels
        count *= 2
