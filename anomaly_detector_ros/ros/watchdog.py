"""Gives up a worker's thread that hangs and starts another one."""

from __future__ import annotations

import threading
from collections.abc import Callable

from anomaly_detector_ros.ros.worker import Worker

MAX_HANGS = 3
"""Threads that may hang at the same time; each keeps its models in memory."""


class Watchdog:
    """Watches one worker.

    Args:
        worker: its thread is watched.
        renew: called before another thread starts, to put other models in place of those that
            the thread given up still holds.
    """

    def __init__(self, worker: Worker, renew: Callable[[], None]) -> None:
        self._worker, self._renew = worker, renew
        self._hung: list[threading.Thread] = []
        self._stopped = False
        self.restarts = 0

    @property
    def problem(self) -> str:
        """Why no image is worked on any more; empty while there is a thread that does."""
        if not self._stopped:
            return ""
        return (
            f"{MAX_HANGS} detector threads hang: the device does not answer; restart the node, or "
            "raise watchdog_timeout if an image takes that long"
        )

    def check(self, timeout: float) -> str:
        """Looks after the thread; to be called about once a second.

        Args:
            timeout: seconds that one turn may take; 0: any number.

        Returns:
            What was done, for the log; empty if nothing was.
        """
        if self._worker.stopping:
            return ""
        self._hung = [thread for thread in self._hung if thread.is_alive()]
        if self._stopped:
            if len(self._hung) == MAX_HANGS:
                return ""
            self._restart()
            return "a detector thread that hung came back: images are worked on again"
        seconds = self._worker.busy_for()
        if not timeout or seconds <= timeout:
            return ""
        problem = f"no result after {seconds:.0f} s, watchdog_timeout is {timeout:g} s"
        thread = self._worker.give_up(problem)
        if thread is not None:
            self._hung.append(thread)
        if len(self._hung) >= MAX_HANGS:
            self._stopped = True
            return f"{problem}: {self.problem}"
        self._restart()
        return f"{problem}: the thread was given up and another one started, with fresh models"

    def _restart(self) -> None:
        self._stopped = False
        self.restarts += 1
        self._renew()
        self._worker.start()
