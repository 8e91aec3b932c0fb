"""Fitting a profile's distance to nominal images, for all of them and for those of each fold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from anomaly_detector_ros.building import Parts
from anomaly_detector_ros.calibration.calibration import FittedDistance
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.distances.base import (
    CosineDistance,
    Distance,
    NominalDifferences,
    WhitenedDistance,
    merged,
)
from anomaly_detector_ros.distances.novelty import NoveltyDistance
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.features.sampling import sample_features
from anomaly_detector_ros.profiles import Profile

_FOLDS = 10

Progress = Callable[[int, int, str], None]
"""Takes what is done, the total, and what is being done; `cli.common.progress_bar` gives one."""


class Edits(Protocol):
    """Images and their edits by index."""

    def __len__(self) -> int: ...

    def __call__(self, index: int, detector: Detector) -> tuple[np.ndarray, Tensor, Tensor]:
        """The image, uint8 RGB (H, W, 3), what was edited (1, 3, h, w), and edits (K, 3, h, w)."""
        ...


def folds(of: Sequence[object], count: int) -> list[list[int]]:
    """The indices of a sequence in so many runs of about the same length."""
    return [run.tolist() for run in np.array_split(np.arange(len(of)), count)]


def fit_distance(
    profile: Profile,
    parts: Parts,
    files: Sequence[Path],
    edited: Edits,
    memory: Sequence[Path],
    seed: int,
    progress: Progress,
) -> tuple[FittedDistance | None, list[Distance]]:
    """The distance of all images, None if it is not one that is fitted, and those of the folds.

    There are as many folds as distances in the list. Each fold's distance knows nothing of its
    images.

    Args:
        files: nominal images; neighbours in a video stand side by side.
        edited: the same images with their edits.
        memory: other nominal images, for the memory of the novelty distance.
        seed: of what is drawn.

    Raises:
        UserError: too few images, or an image that cannot be read.
    """
    name = profile.distance["name"]
    if name == "cosine":
        return None, [CosineDistance()]
    if name == "novelty" and memory:
        novelty = fit_novelty(profile, parts, memory, seed, progress)
        return novelty, [novelty.to(parts.device)]
    if len(files) < 2:
        raise UserError(f"a {name} distance is fitted on at least 2 nominal images: give more")
    runs = folds(files, min(_FOLDS, len(files)))
    if name == "novelty":
        return _novelty_by_folds(profile, parts, files, runs, seed, progress)
    return _whitened_by_folds(profile, parts, edited, runs, progress)


def fit_novelty(
    profile: Profile,
    parts: Parts,
    files: Sequence[Path],
    seed: int,
    progress: Progress,
) -> NoveltyDistance:
    """The novelty distance whose memory is drawn from the features of nominal images."""
    count = int(profile.distance["memory"])
    memory = _drawn(profile, parts, files, count, seed, progress, 0, len(files))
    return NoveltyDistance(memory, float(profile.distance["edit_weight"]))


def _drawn(
    profile: Profile,
    parts: Parts,
    files: Sequence[Path],
    count: int,
    seed: int,
    progress: Progress,
    before: int,
    total: int,
) -> Tensor:
    return sample_features(
        parts.features(profile.features),
        files,
        count,
        seed,
        lambda done: progress(before + done, total, "memory"),
    )


def _novelty_by_folds(
    profile: Profile,
    parts: Parts,
    files: Sequence[Path],
    runs: Sequence[Sequence[int]],
    seed: int,
    progress: Progress,
) -> tuple[NoveltyDistance, list[Distance]]:
    weight = float(profile.distance["edit_weight"])
    share = -(-int(profile.distance["memory"]) // len(runs))
    drawn = [
        _drawn(profile, parts, [files[i] for i in run], share, seed, progress, run[0], len(files))
        for run in runs
    ]

    def without(fold: int) -> Iterator[Tensor]:
        return (memory for index, memory in enumerate(drawn) if index != fold)

    distances: list[Distance] = [
        NoveltyDistance(torch.cat(list(without(fold))), weight).to(parts.device)
        for fold in range(len(runs))
    ]
    return NoveltyDistance(torch.cat(drawn), weight), distances


def _whitened_by_folds(
    profile: Profile,
    parts: Parts,
    edited: Edits,
    runs: Sequence[Sequence[int]],
    progress: Progress,
) -> tuple[WhitenedDistance, list[Distance]]:
    shrinkage = profile.distance["shrinkage"]
    learned = []
    for run in runs:
        learned.append(NominalDifferences())
        detector = Detector.from_parts(profile, parts, distance=learned[-1], calibrated=False)
        for index in run:
            image, original, edits = edited(index, detector)
            detector.compare(image, original, edits)
            progress(index + 1, len(edited), "differences")
    others = [merged(other for other in learned if other is not fold) for fold in learned]
    distances: list[Distance] = [each.whitened(shrinkage).to(parts.device) for each in others]
    return merged(learned).whitened(shrinkage), distances
