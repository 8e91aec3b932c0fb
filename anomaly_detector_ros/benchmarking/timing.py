"""Runs of detectors that take turns: what they take, and how often they ask their denoisers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from anomaly_detector_ros.runtime.statistics import interval

if TYPE_CHECKING:  # the command line starts without torch
    from torch import Tensor

    from anomaly_detector_ros.benchmarking.energy import Meter
    from anomaly_detector_ros.detector import Detector
    from anomaly_detector_ros.synthesis.denoisers.base import Denoiser

END_TO_END = "end to end"


@dataclass
class Passes:
    """Images through a network: a batch of B counts B.

    Attributes:
        forward: denoised.
        backward: differentiated (the exact Jacobian).
    """

    forward: int = 0
    backward: int = 0


@contextmanager
def counting(detector: Detector) -> Iterator[Passes]:
    """Counts the passes through the detector's denoiser meanwhile."""
    denoiser, passes = detector.denoiser, Passes()
    detector.denoiser = _Counted(denoiser, passes)
    try:
        yield passes
    finally:
        detector.denoiser = denoiser


class _Counted:
    """A denoiser whose passes are counted."""

    def __init__(self, denoiser: Denoiser, passes: Passes) -> None:
        self.denoiser, self.passes = denoiser, passes
        self.schedule = denoiser.schedule

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)  # its space, if it has one

    def __call__(self, x: Tensor, t: int) -> Tensor:
        return self._noted(self.denoiser(x, t))

    def fill_in(self, x: Tensor, t: int, known: Tensor, hidden: Tensor) -> Tensor:
        from anomaly_detector_ros.synthesis.denoisers.base import fill_in

        return self._noted(fill_in(self.denoiser, x, t, known, hidden))

    def _noted(self, x0: Tensor) -> Tensor:
        self.passes.forward += len(x0)
        if x0.requires_grad:
            x0.register_hook(self._differentiated)
        return x0

    def _differentiated(self, gradient: Tensor) -> None:
        self.passes.backward += len(gradient)


@dataclass
class Case:
    """A detector at a batch size, and what its measured runs took.

    Attributes:
        profile: the detector's name for people.
        detector: may be another case's, too.
        batch: images in one call of `Detector.detect_batch`.
        runs: seconds an image by stage, and `END_TO_END`, of each run.
        joules: by meter, of all runs together.
        passes: the denoiser's, of one call.
    """

    profile: str
    detector: Detector
    batch: int
    runs: list[dict[str, float]] = field(default_factory=list)
    joules: dict[str, float] = field(default_factory=dict)
    passes: Passes = field(default_factory=Passes)


def measure(
    cases: Sequence[Case],
    picture: np.ndarray,
    *,
    repeats: int,
    warmup: int,
    meters: Mapping[str, Meter],
    advance: Callable[[int], None],
) -> None:
    """Runs the cases in turns and fills in what they took.

    Args:
        picture: uint8 RGB (H, W, 3); a batch is so many of it.
        repeats, warmup: runs of each case that are measured, and before them that are not.
        meters: by name; see `energy.find_meters`.
        advance: told how many runs are done.
    """
    for index in range(warmup + repeats):
        # Every other round backwards: a machine that slows down favours neither of a pair.
        for case in cases if index % 2 else reversed(cases):
            before = {name: meter.joules() for name, meter in meters.items()}
            run = _run(case, picture)
            if index < warmup:
                continue
            case.runs.append(run)
            for name, meter in meters.items():
                used = meter.joules() - before[name]
                case.joules[name] = case.joules.get(name, 0.0) + used
        advance((index + 1) * len(cases))


def _run(case: Case, picture: np.ndarray) -> dict[str, float]:
    with counting(case.detector) as passes:
        start = time.perf_counter()
        detections = case.detector.detect_batch([picture] * case.batch)
        seconds = time.perf_counter() - start
    case.passes = passes
    stages = [name for name in detections[0].timings if name != "total"]
    means = {name: statistics.fmean(d.timings[name] for d in detections) for name in stages}
    return {**means, END_TO_END: seconds / case.batch}


def summarise(runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Median and 95th percentile, seconds an image, of each stage, and images per second.

    >>> summarise([{"end to end": 1.0}, {"end to end": 3.0}, {"end to end": 2.0}])
    {'stages': {'end to end': {'median': 2.0, 'p95': 2.9}}, 'images_per_second': 0.5}
    """
    stages = {}
    for stage in runs[0]:
        values = [run[stage] for run in runs]
        p95 = round(float(np.percentile(values, 95)), 9)
        stages[stage] = {"median": statistics.median(values), "p95": p95}
    return {
        "stages": stages,
        "images_per_second": 1 / statistics.fmean(run[END_TO_END] for run in runs),
    }


def paired_ratio(
    first: Sequence[float], second: Sequence[float], *, resamples: int = 10_000
) -> dict[str, float]:
    """The median of first[i] / second[i] and its 95% interval.

    The two of a pair ran one after the other, so what slows the whole machine for a while cancels
    out. Percentile bootstrap over pairs (Efron & Tibshirani 1993).

    >>> paired_ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    {'median': 2.0, 'low': 2.0, 'high': 2.0}
    """
    ratios = np.divide(first, second)
    drawn = np.random.default_rng(0).integers(0, len(ratios), (resamples, len(ratios)))
    bounds = interval(np.median(ratios[drawn], axis=1))
    return {"median": float(np.median(ratios)), **bounds._asdict()}
