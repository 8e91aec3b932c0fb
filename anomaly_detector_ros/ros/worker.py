"""The thread that runs the models: one slot per camera, the newest image in it, turn by turn.

No rclpy: what an image is, and what is done with it, is the caller's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from anomaly_detector_ros.ros.counters import CameraCounters

RECHECK = 0.1
"""The shortest interval is asked again after this many seconds, as it may change meanwhile."""


@dataclass(frozen=True)
class Frame:
    """One image that waits for its turn."""

    data: Any
    """The message, serialised or not."""
    arrived: float
    """Monotonic clock at arrival, seconds."""
    arrived_ros: int = 0
    """The node's clock at arrival, nanoseconds."""


class Slot:
    """Where a camera's newest image waits. Filled and emptied under the worker's lock only."""

    def __init__(self, counters: CameraCounters) -> None:
        self.counters = counters
        self.frame: Frame | None = None
        self.last_start = float("-inf")


class Worker:
    """Serves the slots of several cameras in one thread.

    A camera whose images come faster than they are served loses the older ones, never the newest,
    and takes no turn from another camera.

    Args:
        counters: one per camera; the camera is known by its index from then on.
        serve: called in the thread as ``serve(index, frame)``; counts the frame as processed or
            dropped itself. If it raises, the frame counts as failed and ``report`` is called.
        min_interval: shortest time between two starts for one camera in seconds, asked each
            time and again while an image waits.
        report: called in the thread as ``report(index, exception)``.
        clock: monotonic seconds, the same as in `Frame.arrived`.
    """

    def __init__(
        self,
        counters: Sequence[CameraCounters],
        serve: Callable[[int, Frame], None],
        *,
        min_interval: Callable[[], float] = lambda: 0.0,
        report: Callable[[int, Exception], None] = lambda index, error: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._slots = [Slot(each) for each in counters]
        self._serve, self._report = serve, report
        self._min_interval, self._clock = min_interval, clock
        self._changed = threading.Condition()
        self._next = 0
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread, a daemon: a model that hangs cannot keep the process alive."""
        self._thread = threading.Thread(target=self._run, name="detector", daemon=True)
        self._thread.start()

    def stop(self, timeout: float | None = None) -> bool:
        """Ends the thread after the image in work; True if it ended within ``timeout`` seconds."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self.discard()
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping

    def put(self, index: int, frame: Frame) -> None:
        """Leaves a camera's newest image in its slot; one that still waited there is dropped."""
        slot = self._slots[index]
        with self._changed:
            slot.counters.received()
            if self._stopping:
                slot.counters.dropped("discarded")
                return
            if slot.frame is not None:
                slot.counters.dropped("replaced")
            slot.frame = frame
            self._changed.notify_all()

    def discard(self) -> None:
        """Drops the images that wait."""
        with self._changed:
            for slot in self._slots:
                if slot.frame is not None:
                    slot.counters.dropped("discarded")
                    slot.frame = None

    def _run(self) -> None:
        while (turn := self._take()) is not None:
            index, frame = turn
            try:
                self._serve(index, frame)
            except Exception as error:
                self._slots[index].counters.dropped("failed", f"{type(error).__name__}: {error}")
                self._report(index, error)

    def _take(self) -> tuple[int, Frame] | None:
        """The next camera's image, as soon as there is one that is due; None at the end."""
        with self._changed:
            while not self._stopping:
                wait: float | None = None
                for offset in range(len(self._slots)):
                    index = (self._next + offset) % len(self._slots)
                    slot = self._slots[index]
                    if slot.frame is None:
                        continue
                    now = self._clock()
                    due = slot.last_start + self._min_interval()
                    if now >= due:
                        frame, slot.frame = slot.frame, None
                        slot.last_start = now
                        self._next = index + 1
                        return index, frame
                    wait = min(due - now, RECHECK if wait is None else wait)
                self._changed.wait(wait)
        return None
