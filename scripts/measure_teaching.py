"""Prints what teaching some frames of other terrain brings, for the table of docs/teach.md.

Data sets are named LAYOUT:ROOT or LAYOUT:ROOT:SPLIT, as `evaluate` reads them. Taught are frames of
--taught, spread over it; measured is on --on, or without it on each frame of --taught by a detector
that was taught others of them. --old is of the terrain that the profile was fitted on. Example:

    python scripts/measure_teaching.py --taught folder:suim/val --on folder:suim/test \\
        --old ycor:ycor:test --frames 1 5 20 60
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from anomaly_detector_ros.building import Parts
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.evaluation.datasets.base import Dataset, LabelledImage, open_dataset
from anomaly_detector_ros.evaluation.metrics.pixels import PixelCounts
from anomaly_detector_ros.lessons.journal import Lesson
from anomaly_detector_ros.lessons.teaching import Look, Teaching

_COLUMNS = (
    *("frames", "left out", "false positives", "found", "found at 1% false positives", "AUC-PR"),
    *("old terrain: found", "AUC-PR", "vectors", "MiB", "s to learn", "ms to search"),
)


@dataclass
class Measured:
    """Heatmaps of labelled images against their truth."""

    threshold: float
    counts: PixelCounts = field(default_factory=PixelCounts)

    def add(self, detector: Detector, images: Iterable[LabelledImage]) -> None:
        """Adds what a detector makes of images."""
        for image in images:
            self.counts.add(detector.detect(image.image).heatmap, image.anomaly, image.valid)

    def shares(self) -> tuple[float, float, float, float]:
        """False and true positives at the threshold, true ones at 1% false ones, AUC-PR."""
        curve = self.counts.curve()
        if not len(curve.thresholds):
            return np.nan, np.nan, np.nan, np.nan
        false = curve.nominal / max(curve.nominal[-1], 1)
        true = curve.anomalous / curve.anomalous[-1] if curve.anomalous[-1] else false * np.nan
        reached = curve.thresholds >= self.threshold
        at = int(reached.sum()) - 1
        usual = int(np.searchsorted(false, 0.01, side="right")) - 1
        alarmed = (float(false[at]), float(true[at])) if at >= 0 else (0.0, 0.0)
        return *alarmed, float(true[max(usual, 0)]), self.counts.result().auc_pr


def main() -> None:
    """Measures one terrain."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--profile", default="light")
    options.add_argument("--device", default="auto")
    options.add_argument("--taught", required=True)
    options.add_argument("--on")
    options.add_argument("--old")
    options.add_argument("--frames", type=int, nargs="+", default=[1, 5, 20, 60])
    given = options.parse_args()
    detector = Detector.from_profile(given.profile, device=given.device)
    taught = _open(given.taught)
    others = _open(given.on) if given.on else None
    old = list(_open(given.old)) if given.old else []
    looks = [
        Look.of(each.name, each.image, detector.detect(each.image), detector.threshold)
        for each in taught
    ]
    print(f"| {' | '.join(_COLUMNS)} |\n|{' --- |' * len(_COLUMNS)}")
    for count in (0, *given.frames):
        measured, before = Measured(detector.threshold), Measured(detector.threshold)
        learnt = Learnt()
        if others is not None:
            learnt.teach(detector, _spread(looks, count))
            measured.add(detector, others)
        else:
            for index, image in enumerate(taught):
                known = [look for number, look in enumerate(looks) if number != index]
                learnt.teach(detector, _spread(known, count))
                measured.add(detector, [image])
        before.add(detector, old)
        false, *rest = measured.shares()
        _, still, _, kept = before.shares()
        cells = [f"{count}", f"{learnt.left_out:.1f}", f"{false:.1%}"]
        cells += [f"{share:.2f}" for share in rest[:2]] + [f"{rest[2]:.3f}", f"{still:.2f}"]
        cells += [f"{kept:.3f}", f"{learnt.vectors}", f"{learnt.mib:.2f}", f"{learnt.seconds:.1f}"]
        cells += [f"{_search_time(detector, looks[0]) * 1e3:.0f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


@dataclass
class Learnt:
    """What teaching took; of several lessons the mean, and the size of the last one.

    Attributes:
        left_out: frames.
        seconds: of all cores, besides looking at the frames.
        vectors, mib: of the last one.
    """

    left_out: float = 0.0
    seconds: float = 0.0
    vectors: int = 0
    mib: float = 0.0
    _lessons: int = 0

    def teach(self, detector: Detector, looks: Sequence[Look]) -> None:
        """The detector knows these frames alone besides what it was fitted on."""
        parts = Parts(detector.device, offline=True)
        lessons = parts.lessons(detector.profile, None)
        detector.teach(lessons)
        if not looks:
            return
        started = time.process_time()
        teaching = Teaching(looks, detector.distance, [], detector.rescore)
        for _ in teaching.work():
            pass
        lesson: Lesson = teaching.lesson(camera="", asked_by="measure_teaching")
        taken = time.process_time() - started
        self._lessons += 1
        self.seconds += (taken - self.seconds) / self._lessons
        self.left_out += (len(lesson.left_out) - self.left_out) / self._lessons
        self.vectors, self.mib = len(lesson.vectors), lesson.vectors.numel() / 2**20
        detector.teach(lessons.added(lesson))


def _search_time(detector: Detector, look: Look) -> float:
    """Seconds of all cores that one image's places are compared with what is known."""
    features = torch.from_numpy(look.features).to(detector.device).float()
    taken = []
    with torch.inference_mode():
        for _ in range(5):
            started = time.process_time()
            detector.distance(features[:1], features[1:])
            taken.append(time.process_time() - started)
    return float(np.median(taken))


def _spread(looks: Sequence[Look], count: int) -> list[Look]:
    if count >= len(looks):
        return list(looks)
    return [looks[int(index)] for index in np.linspace(0, len(looks) - 1, count).round()]


def _open(named: str) -> Dataset:
    layout, root, split = [*named.split(":"), None, None][:3]
    return open_dataset(str(layout), Path(root or "."), split)


if __name__ == "__main__":
    main()
