"""What became of a camera's images: counts since the start and averages of the last seconds."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from anomaly_detector_ros.errors import one_line

DROP_REASONS: dict[str, str] = {
    "replaced": "a newer image came before this one's turn",
    "too_old": "older than max_input_age",
    "bad": "the message holds no usable image",
    "failed": "the detector failed on it",
    "hung": "the detector did not come back with it within watchdog_timeout",
    "paused": "processing is switched off by ~/enable",
    "discarded": "it waited when the node was deactivated",
}
WINDOW = 10.0
"""Averages and recent counts cover this many seconds."""


@dataclass(frozen=True)
class Processed:
    """An image's outputs were published.

    Attributes:
        age: seconds from stamp (or arrival) to the start of processing.
        latency: seconds from arrival to the last publication.
        stages: seconds by stage.
    """

    age: float
    latency: float
    stages: Mapping[str, float]


@dataclass(frozen=True)
class Dropped:
    """An image gave no result.

    Attributes:
        reason: one of `DROP_REASONS`.
        problem: about this image; empty where the reason says all.
    """

    reason: str
    problem: str = ""


Fate = Processed | Dropped


@dataclass(frozen=True)
class Snapshot:
    """A camera's counters at one instant; ``received == processed + dropped + pending``."""

    received: int = 0
    processed: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    pending: int = 0
    input_rate: float = 0.0
    rate: float = 0.0
    age: float | None = None
    max_age: float | None = None
    latency: float | None = None
    stages: Mapping[str, float] = field(default_factory=dict)
    recent: Mapping[str, int] = field(default_factory=dict)
    """Images of the last `WINDOW` seconds by fate: "processed" or a drop reason."""
    problem: str = ""
    """The last bad image or failure within `WINDOW`."""
    silence: float = 0.0
    """Seconds since the last image, or since the counters started."""
    own_clock: bool = True
    """Whether the last image was stamped with the node's clock."""


class CameraCounters:
    """Counters of one camera. Thread-safe: arrivals and fates come from different threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._started = clock()
        self._last_arrival = self._started
        self._received = self._processed = 0
        self._dropped: Counter[str] = Counter()
        self._arrivals: deque[float] = deque()
        self._fates: deque[tuple[float, str]] = deque()
        self._measured: deque[tuple[float, float, float, Mapping[str, float]]] = deque()
        self._problem, self._problem_time = "", float("-inf")
        self._own_clock = True

    def restart_silence(self) -> None:
        """Counts the time without images from now, as when a subscription begins."""
        with self._lock:
            self._last_arrival = self._clock()

    def received(self) -> None:
        """Counts an image that arrived."""
        with self._lock:
            now = self._clock()
            self._received += 1
            self._last_arrival = now
            self._arrivals.append(now)
            self._trim(now)

    def dropped(self, reason: str, problem: str = "") -> None:
        """Counts an image that gave no result, for one of `DROP_REASONS`."""
        if reason not in DROP_REASONS:
            raise ValueError(f"drop reason {reason!r} is none of {', '.join(DROP_REASONS)}")
        with self._lock:
            now = self._clock()
            self._dropped[reason] += 1
            self._fates.append((now, reason))
            if problem:
                self._problem, self._problem_time = one_line(problem), now
            self._trim(now)

    def processed(self, age: float, latency: float, stages: Mapping[str, float]) -> None:
        """Counts an image whose outputs were published; see `Processed`."""
        with self._lock:
            now = self._clock()
            self._processed += 1
            self._fates.append((now, "processed"))
            self._measured.append((now, age, latency, dict(stages)))
            self._trim(now)

    def settle(self, fate: Fate) -> None:
        """Counts an image by its fate."""
        if isinstance(fate, Processed):
            self.processed(fate.age, fate.latency, fate.stages)
        else:
            self.dropped(fate.reason, fate.problem)

    def stamped(self, own_clock: bool) -> None:
        """Notes whether the last image's stamp is of the node's clock."""
        self._own_clock = own_clock

    def snapshot(self) -> Snapshot:
        """All counters at one instant."""
        with self._lock:
            now = self._clock()
            self._trim(now)
            recent = Counter(fate for _, fate in self._fates)
            ages = [age for _, age, _, _ in self._measured]
            latencies = [latency for _, _, latency, _ in self._measured]
            span = max(min(WINDOW, now - self._started), 1e-3)
            return Snapshot(
                received=self._received,
                processed=self._processed,
                dropped={reason: self._dropped[reason] for reason in DROP_REASONS},
                pending=self._received - self._processed - sum(self._dropped.values()),
                input_rate=len(self._arrivals) / span,
                rate=recent["processed"] / span,
                age=_mean(ages),
                max_age=max(ages, default=None),
                latency=_mean(latencies),
                stages=_mean_stages([stages for _, _, _, stages in self._measured]),
                recent=dict(recent),
                problem=self._problem if now - self._problem_time <= WINDOW else "",
                silence=now - self._last_arrival,
                own_clock=self._own_clock,
            )

    def _trim(self, now: float) -> None:
        oldest = now - WINDOW
        while self._arrivals and self._arrivals[0] < oldest:
            self._arrivals.popleft()
        while self._fates and self._fates[0][0] < oldest:
            self._fates.popleft()
        while self._measured and self._measured[0][0] < oldest:
            self._measured.popleft()


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _mean_stages(measured: list[Mapping[str, float]]) -> dict[str, float]:
    """Means by stage in order of first appearance, over the images that have the stage."""
    values: dict[str, list[float]] = {}
    for stages in measured:
        for stage, seconds in stages.items():
            values.setdefault(stage, []).append(seconds)
    return {stage: sum(seconds) / len(seconds) for stage, seconds in values.items()}
