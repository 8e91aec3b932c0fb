"""The thread that runs the models: one slot per camera, the newest image in it, turn by turn.

Also how old an image is when its turn comes, and what is done about a thread that hangs. No rclpy:
what an image is, and what is done with it, is the caller's.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from anomaly_detector_ros.ros.counters import CameraCounters, Dropped, Fate

RECHECK = 0.1
"""The shortest interval is asked again after this many seconds, as it may change meanwhile."""
OWN_CLOCK_BOUND = 10.0
"""A stamp further than this many seconds before its arrival is taken for another clock's."""
MAX_HANGS = 3
"""Threads that may hang at the same time; each keeps its models in memory."""


@dataclass(frozen=True)
class Frame:
    """One image that waits for its turn."""

    data: Any
    """The message, serialised or not."""
    arrived: float
    """Monotonic clock at arrival, seconds."""
    arrived_ros: int = 0
    """The node's clock at arrival, nanoseconds."""


class Turn:
    """One camera's image in work. Its fate is counted once, whoever tells it first.

    Args:
        index: the camera's.
        frame: the image.
        counters: the camera's.
    """

    def __init__(self, index: int, frame: Frame, counters: CameraCounters) -> None:
        self.index, self.frame = index, frame
        self._counters = counters
        self._lock = threading.Lock()
        self._settled = False

    @property
    def settled(self) -> bool:
        """Whether the fate is counted, as that of an image whose thread was given up is."""
        return self._settled

    def settle(self, fate: Fate) -> bool:
        """Counts the image's fate; False, and nothing is counted, if that was done before."""
        with self._lock:
            if self._settled:
                return False
            self._settled = True
        self._counters.settle(fate)
        return True


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
        serve: called in the thread as ``serve(turns)`` and settles each turn. If it raises, those
            it left count as failed and ``report`` is called.
        min_interval: shortest time between two starts for a camera in seconds, by its index, asked
            time and again while an image waits.
        batch: asked before each turn; true: one image of every camera that has one is served
            together, false: one image at a time.
        report: called in the thread as ``report(index, exception)``.
        clock: monotonic seconds, the same as in `Frame.arrived`.
    """

    def __init__(
        self,
        counters: Sequence[CameraCounters],
        serve: Callable[[list[Turn]], None],
        *,
        min_interval: Callable[[int], float] = lambda index: 0.0,
        batch: Callable[[], bool] = lambda: False,
        report: Callable[[int, Exception], None] = lambda index, error: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._slots = [Slot(each) for each in counters]
        self._serve, self._report = serve, report
        self._min_interval, self._batch, self._clock = min_interval, batch, clock
        self._changed = threading.Condition()
        self._next = 0
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._turns: list[Turn] = []
        self._since = 0.0
        self._jobs: deque[Callable[[], None]] = deque()
        self._job_last = False

    def start(self) -> None:
        """Starts the thread, a daemon: a model that hangs cannot keep the process alive."""
        thread = threading.Thread(target=self._run, name="detector", daemon=True)
        with self._changed:
            self._thread = thread
        thread.start()

    def stop(self, timeout: float | None = None) -> bool:
        """Ends the thread after the image in work; True if it ended within ``timeout`` seconds."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self.discard()
        thread = self._thread
        if thread is None:
            return True
        thread.join(timeout)
        return not thread.is_alive()

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping

    # -- images ------------------------------------------------------------------------------------

    def put(self, index: int, frame: Frame) -> None:
        """Leaves a camera's newest image in its slot; one that still waited there is dropped."""
        slot = self._slots[index]
        with self._changed:
            slot.counters.received()
            if self._stopping:
                slot.counters.settle(Dropped("discarded"))
                return
            if slot.frame is not None:
                slot.counters.settle(Dropped("replaced"))
            slot.frame = frame
            self._changed.notify_all()

    def submit(self, job: Callable[[], None]) -> None:
        """Has a short piece of other work done in the thread, which may not raise.

        Images and such pieces take turns.
        """
        with self._changed:
            if not self._stopping:
                self._jobs.append(job)
                self._changed.notify_all()

    def discard(self) -> None:
        """Drops the images that wait."""
        with self._changed:
            for slot in self._slots:
                if slot.frame is not None:
                    slot.counters.settle(Dropped("discarded"))
                    slot.frame = None

    # -- supervision -------------------------------------------------------------------------------

    def busy_for(self) -> float:
        """Seconds that the thread has been at its present turn, or since it last called `beat`."""
        with self._changed:
            return self._clock() - self._since if self._turns else 0.0

    def beat(self) -> None:
        """Tells, out of ``serve``, that work goes on: `busy_for` counts from now."""
        with self._changed:
            if threading.current_thread() is self._thread:
                self._since = self._clock()

    def give_up(self, problem: str) -> threading.Thread | None:
        """Gives the thread up: its images count as hung, and it ends should it ever come back.

        Returns the thread; None where none is at work. `start` begins another one.
        """
        with self._changed:
            thread, self._thread = self._thread, None
            turns, self._turns = self._turns, []
        for turn in turns:
            turn.settle(Dropped("hung", problem))
        return thread

    # -- in the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        while (turns := self._take()) is not None:
            if not turns:
                self._do_job()
                continue
            try:
                self._serve(turns)
                fate = Dropped("failed", "left without a result")
            except Exception as error:
                fate = Dropped("failed", f"{type(error).__name__}: {error}")
                self._report(turns[0].index, error)
            for turn in turns:
                turn.settle(fate)

    def _do_job(self) -> None:
        job = self._jobs.popleft()
        try:
            job()
        except Exception as error:
            self._report(0, error)

    def _take(self) -> list[Turn] | None:
        """The next images, as soon as any are due; none: a job is; None at the end."""
        with self._changed:
            while not self._stopping and threading.current_thread() is self._thread:
                self._turns = []
                due, wait = self._due()
                if self._jobs and (not due or not self._job_last):
                    self._job_last = True
                    return []
                if due:
                    self._job_last = False
                    self._next = due[-1] + 1
                    self._since = self._clock()
                    self._turns = [self._start_turn(index) for index in due]
                    return self._turns
                self._changed.wait(wait)
        return None

    def _due(self) -> tuple[list[int], float | None]:
        """Cameras whose turn it is, and how long to wait if there are none; None: until a change"""
        due: list[int] = []
        wait: float | None = None
        batch = self._batch()
        for offset in range(len(self._slots)):
            index = (self._next + offset) % len(self._slots)
            slot = self._slots[index]
            if slot.frame is None:
                continue
            remaining = slot.last_start + self._min_interval(index) - self._clock()
            if remaining > 0:
                wait = min(remaining, RECHECK if wait is None else wait)
                continue
            due.append(index)
            if not batch:
                break
        return due, wait

    def _start_turn(self, index: int) -> Turn:
        slot = self._slots[index]
        frame, slot.frame = slot.frame, None
        slot.last_start = self._clock()
        assert frame is not None
        return Turn(index, frame, slot.counters)


class InputAge(NamedTuple):
    """Age of an image and what it was measured by."""

    seconds: float
    by_stamp: bool
    """True: the header's stamp; False: the time since arrival, the stamp being of no use."""


def input_age(
    stamp: int, arrived: int, now: int, waited: float, max_input_age: float = 0.0
) -> InputAge:
    """Age of an image in seconds, never negative.

    A stamp tells the age only if it was taken with the node's clock. A replayed bag without
    simulated time, a driver that stamps zero and a camera with a clock of its own do not; dropping
    all of their images as too old would help nobody, so these are aged by their waiting time alone.

    Args:
        stamp: the header's stamp in nanoseconds.
        arrived: the node's clock at arrival, nanoseconds.
        now: the node's clock, nanoseconds.
        waited: seconds since arrival by a monotonic clock.
        max_input_age: the limit in force; a stamp counts as the node's clock up to twice this limit
            before its arrival, and up to `OWN_CLOCK_BOUND` in any case.
    """
    bound = max(OWN_CLOCK_BOUND, 2.0 * max_input_age)
    transport = (arrived - stamp) * 1e-9
    age = (now - stamp) * 1e-9
    if stamp > 0 and 0.0 <= transport <= bound and age >= 0.0:
        return InputAge(age, True)
    return InputAge(max(0.0, waited), False)


def moments(stamp: int, arrived: int, by_stamp: bool) -> tuple[int, ...]:
    """When TF may know where the camera was, nanoseconds, the most likely first.

    The last one is by the node's clock.

    Args:
        stamp, arrived: as `input_age` takes them.
        by_stamp: as it judges the stamp.
    """
    if by_stamp:
        return (stamp,)
    if 0 < stamp < arrived:  # a recording, whose TF is as old, or a camera whose clock is late
        return stamp, arrived
    return (arrived,)


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
