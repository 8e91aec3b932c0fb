"""What became of a camera's images: counts since the start and averages of the last seconds."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
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

    def __post_init__(self) -> None:
        if self.reason not in DROP_REASONS:
            raise ValueError(f"drop reason {self.reason!r} is none of {', '.join(DROP_REASONS)}")


Fate = Processed | Dropped


@dataclass(frozen=True)
class Snapshot:
    """A camera's counters at one instant; ``received == processed + dropped + pending``.

    Attributes:
        dropped: since the start, by reason.
        input_rate, rate: images per second that came and that were processed, of the last `WINDOW`
            seconds, as all that follows.
        age, max_age, latency, stages: means and largest of `Processed`; None, or empty: there is
            none.
        recent: images by fate: "processed" or a drop reason.
        problem: the last one.
        silence: seconds since the last image, or since the counters started.
        own_clock: whether the last image was stamped with the node's clock.
    """

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
    problem: str = ""
    silence: float = 0.0
    own_clock: bool = True


class CameraCounters:
    """Counters of one camera. Thread-safe: arrivals and fates come from different threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._started = self._last_arrival = clock()
        self._received = 0
        self._settled: Counter[str] = Counter()
        self._arrivals: deque[float] = deque()
        self._fates: deque[tuple[float, Fate]] = deque()
        self._own_clock = True

    def restart_silence(self) -> None:
        """Counts the time without images from now, as when a subscription begins."""
        with self._lock:
            self._last_arrival = self._clock()

    def received(self) -> None:
        """Counts an image that arrived."""
        with self._lock:
            self._received += 1
            self._last_arrival = self._clock()
            self._arrivals.append(self._last_arrival)
            self._forget(self._last_arrival - WINDOW)

    def settle(self, fate: Fate) -> None:
        """Counts an image by its fate."""
        with self._lock:
            now = self._clock()
            self._settled[_name(fate)] += 1
            self._fates.append((now, fate))
            self._forget(now - WINDOW)

    def stamped(self, own_clock: bool) -> None:
        """Notes whether the last image's stamp is of the node's clock."""
        self._own_clock = own_clock

    def snapshot(self) -> Snapshot:
        """All counters at one instant."""
        with self._lock:
            now = self._clock()
            self._forget(now - WINDOW)
            fates = [fate for _, fate in self._fates]
            recent = Counter(map(_name, fates))
            done = [fate for fate in fates if isinstance(fate, Processed)]
            problems = [fate.problem for fate in fates if isinstance(fate, Dropped)]
            ages = [each.age for each in done]
            span = max(min(WINDOW, now - self._started), 1e-3)
            return Snapshot(
                received=self._received,
                processed=self._settled["processed"],
                dropped={reason: self._settled[reason] for reason in DROP_REASONS},
                pending=self._received - self._settled.total(),
                input_rate=len(self._arrivals) / span,
                rate=recent["processed"] / span,
                age=_mean(ages),
                max_age=max(ages, default=None),
                latency=_mean([each.latency for each in done]),
                stages=_mean_stages(done),
                recent=recent,
                problem=one_line(next(filter(None, reversed(problems)), "")),
                silence=now - self._last_arrival,
                own_clock=self._own_clock,
            )

    def _forget(self, before: float) -> None:
        while self._arrivals and self._arrivals[0] < before:
            self._arrivals.popleft()
        while self._fates and self._fates[0][0] < before:
            self._fates.popleft()


def _name(fate: Fate) -> str:
    return fate.reason if isinstance(fate, Dropped) else "processed"


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _mean_stages(done: Sequence[Processed]) -> dict[str, float]:
    """Means by stage in order of first appearance, over the images that have the stage."""
    values: dict[str, list[float]] = {}
    for each in done:
        for stage, seconds in each.stages.items():
            values.setdefault(stage, []).append(seconds)
    return {stage: sum(seconds) / len(seconds) for stage, seconds in values.items()}
