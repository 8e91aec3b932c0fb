"""Fitting a calibration on nominal images, and measuring what it promises on others."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from anomaly_detector_ros.building import Parts, fingerprint
from anomaly_detector_ros.calibration.calibration import (
    DEFAULT_CAMERA,
    Calibration,
    NominalScores,
)
from anomaly_detector_ros.calibration.distribution import ScorePool
from anomaly_detector_ros.calibration.level import FRAMES
from anomaly_detector_ros.detection import Detection
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.distances.base import Distance
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.features.sampling import sample_features
from anomaly_detector_ros.imaging.images import read_rgb
from anomaly_detector_ros.profiles import Profile
from anomaly_detector_ros.runtime.progress import Progress, silent
from anomaly_detector_ros.runtime.statistics import draw, interval
from anomaly_detector_ros.sources.tally import Tally

RATES = (0.05, 0.02, 0.01, 0.005, 0.001)
"""False-positive rates that are asked for and measured."""


_T = TypeVar("_T")
_FOLDS = 10
_RESAMPLES = 1000


@dataclass(frozen=True)
class FalsePositiveRate:
    """The share of nominal pixels that reach a threshold.

    Attributes:
        asked: 1 - threshold.
        measured: over all pixels of all images.
        low, high: 95% interval, bootstrap over images; NaN for one image.
    """

    asked: float
    measured: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """For JSON, which has no NaN."""
        return {k: None if np.isnan(value) else value for k, value in asdict(self).items()}


def split_files(
    files: Sequence[Path], *, holdout: float, count: int | None, seed: int
) -> tuple[list[Path], list[Path]]:
    """Images to fit on and images held out, drawn at random, each in the given order.

    Args:
        holdout: share that is held out, in [0, 1).
        count: use only so many images, of both kinds together; all if None.

    Raises:
        UserError: not enough images for both.
    """
    order = np.random.default_rng(seed).permutation(len(files))[:count]
    held = round(holdout * len(order))
    fitted, measured = sorted(order[held:]), sorted(order[:held])
    if not fitted or (holdout > 0 and not measured):
        raise UserError(
            f"{len(order)} nominal images are too few to hold {holdout:g} of them out: "
            "give more, or --holdout 0"
        )
    return [files[i] for i in fitted], [files[i] for i in measured]


def fit_calibration(
    profile: Profile,
    parts: Parts,
    files: Sequence[Path],
    *,
    memory: Sequence[Path] = (),
    shared: Path | None = None,
    stream: bool = False,
    seed: int = 0,
    tally: Tally | None = None,
    progress: Progress = silent,
) -> Calibration:
    """The calibration of a profile, whose own, if it has one, is not looked at.

    What a distance was fitted on looks more nominal to it than anything else. So the images are
    parted into folds of neighbours, and the scores of each fold come from a distance fitted on the
    others, as in Barber et al., "Predictive inference with the jackknife+", Annals of Statistics
    2021.

    Args:
        files: nominal images; neighbours in a video stand side by side.
        memory: other nominal images, such as those the denoiser was trained on, to fit the
            distance on; then no folds are needed.
        shared: another calibration, whose distance is taken over; its file must lie in the folder
            where this one will.
        stream: whether the images are frames of a stream, whose level is that of the last ones.
        seed: of what is drawn; goes into the file.
        tally: counts the images; by default a bad one is an error.

    Raises:
        UserError: an image is bad and the tally is to stop at that, images that are all alike, or
            a single one where two are needed.
    """
    profile = replace(profile, calibration={"file": str(shared)} if shared else {})
    pool = ScorePool()
    with tempfile.TemporaryDirectory(prefix="anomaly-detector-") as folder:
        tally = tally or Tally(stop=True)
        images = NominalFiles(profile, parts, files, seed, progress, Path(folder), tally=tally)
        others = NominalFiles(profile, parts, memory, seed, progress, tally=tally)
        distance, folds = (
            _taken_over(profile, images) if shared else _fit_distance(profile, images, others)
        )
        tally.processed += len(others)
        levels = _last_levels(stream)
        for run, seen in folds:
            detector = Detector.from_parts(
                profile, parts, distance=seen.to(parts.device), calibrated=False
            )
            for index in images.part(run):
                look = partial(images.scores, index, detector, tuple(levels))
                found = images.tried(index, look)
                if found is not None:
                    pool.add(*found)
                    levels.append(found[1])
                    tally.processed += 1
                progress(index + 1, len(files), "scores")
    tally.check()
    of, name = fingerprint(profile, parts.registry), shared.name if shared else ""
    return Calibration({DEFAULT_CAMERA: NominalScores.of(pool)}, of, distance.tensors(), seed, name)


def _last_levels(stream: bool) -> deque[float]:
    """What keeps the levels that count for the next frame, oldest first: none of single images."""
    return deque(maxlen=FRAMES - 1 if stream else 0)


def _taken_over(
    profile: Profile, images: NominalFiles
) -> tuple[Distance, list[tuple[list[int], Distance]]]:
    distance = images.parts.distance(profile)
    return distance, [(list(range(len(images))), distance)]


def _fit_distance(
    profile: Profile, images: NominalFiles, others: NominalFiles
) -> tuple[Distance, list[tuple[list[int], Distance]]]:
    """The distance of all images, and of each fold its images and a distance that knows others."""
    settings, everything = profile.parts.distance, list(range(len(images)))
    if not settings.fitted or len(others):
        distance = (
            settings.fit([settings.collect(others, 1)]) if settings.fitted else settings.build({})
        )
        return distance, [(everything, distance)]
    if len(images) < 2:
        raise UserError(
            f"a {profile.distance['name']} distance is fitted on at least 2 nominal images: "
            "give more"
        )
    runs = [run.tolist() for run in np.array_split(everything, min(_FOLDS, len(images)))]
    collected = [settings.collect(images.part(run), len(runs)) for run in runs]
    folds = [
        (run, settings.fit([*collected[:fold], *collected[fold + 1 :]]))
        for fold, run in enumerate(runs)
    ]
    return settings.fit(collected), folds


def fit_camera(
    detector: Detector,
    files: Sequence[Path],
    *,
    stream: bool = False,
    tally: Tally | None = None,
    progress: Progress = silent,
) -> NominalScores:
    """The nominal scores of one camera; the detector's distance stays what it is.

    Args:
        detector: its own calibration's scores are not looked at.
        files: nominal images of that camera, which the distance was not fitted on; neighbours in
            a video stand side by side.
        stream: see `fit_calibration`.
        tally: counts the images; by default a bad one is an error.

    Raises:
        UserError: an image is bad and the tally is to stop at that, or scores are all alike.
    """
    pool, tally, levels = ScorePool(), tally or Tally(stop=True), _last_levels(stream)
    for index, file in enumerate(files):
        found = tally.tried(f"'{file}'", _detect, detector, file, DEFAULT_CAMERA, tuple(levels))
        if found is not None:
            pool.add(found.scores, found.level)
            levels.append(found.level)
            tally.processed += 1
        progress(index + 1, len(files), "scores")
    tally.check()
    return NominalScores.of(pool)


def measure(
    detector: Detector,
    files: Sequence[Path],
    *,
    camera: str = DEFAULT_CAMERA,
    stream: bool = False,
    rates: Sequence[float] = RATES,
    seed: int = 0,
    tally: Tally | None = None,
    progress: Progress = silent,
) -> list[FalsePositiveRate]:
    """How many nominal pixels reach the thresholds 1 - rate of a calibrated detector.

    Args:
        files: nominal images that the calibration was not fitted on.
        camera: whose images they are.
        stream: see `fit_calibration`.
        rates: asked for.
        seed: of the bootstrap.
        tally: counts the images; by default a bad one is an error.
    """
    thresholds, tally = 1 - np.asarray(rates), tally or Tally(stop=True)
    counts, levels = [], _last_levels(stream)
    for index, file in enumerate(files):
        found = tally.tried(f"'{file}'", _detect, detector, file, camera, tuple(levels))
        if found is not None:
            levels.append(found.level)
            heatmap = found.heatmap
            reach = [np.count_nonzero(heatmap >= float(t)) for t in thresholds]
            counts.append((*reach, heatmap.size))
            tally.processed += 1
        progress(index + 1, len(files), "held-out images")
    if not counts:
        return []
    *columns, sizes = np.asarray(counts, float).T
    reaching, pixels = np.stack(columns, 1), sizes[:, None]
    draws = draw(len(counts), _RESAMPLES, seed)
    resampled = (draws @ reaching) / (draws @ pixels)
    measured = reaching.sum(0) / pixels.sum()
    rated = []
    for rate, share, samples in zip(rates, measured, resampled.T, strict=True):
        low, high = interval(samples) if len(counts) > 1 else (np.nan, np.nan)
        rated.append(FalsePositiveRate(float(rate), float(share), float(low), float(high)))
    return rated


def _detect(
    detector: Detector, file: Path, camera: str = DEFAULT_CAMERA, before: Sequence[float] = ()
) -> Detection:
    return detector.detect(read_rgb(file), camera, before=before)


class NominalFiles:
    """Picture files as `distances.base.NominalImages`, each edited once.

    Args:
        profile: its denoiser and sampler make the edits, its extractor the features.
        seed: of what is drawn.
        progress: called with (done, total, what is being done).
        folder: where `compare` keeps edits for `edited`; None to make them anew.
        indices: of the files that are meant; all by default.
        tally: counts files on which the models fail; by default such a one is an error.
        failed: indices of these.
    """

    def __init__(
        self,
        profile: Profile,
        parts: Parts,
        files: Sequence[Path],
        seed: int,
        progress: Progress,
        folder: Path | None = None,
        indices: Sequence[int] | None = None,
        *,
        tally: Tally | None = None,
        failed: set[int] | None = None,
    ) -> None:
        self._tally = tally or Tally(stop=True)
        self._failed = set() if failed is None else failed
        self.profile, self.parts, self.files = profile, parts, files
        self._seed, self._progress, self._folder = seed, progress, folder
        self._indices = range(len(files)) if indices is None else indices

    def __iter__(self) -> Iterator[int]:
        """Indices of the files that have not failed."""
        return (index for index in self._indices if index not in self._failed)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def part(self, indices: Sequence[int]) -> NominalFiles:
        """Some of the files; what they report and keep is theirs among all."""
        return NominalFiles(
            *(self.profile, self.parts, self.files, self._seed, self._progress, self._folder),
            indices,
            tally=self._tally,
            failed=self._failed,
        )

    def tried(self, index: int, work: Callable[[], _T]) -> _T | None:
        """What models make of a file; None, and it is left out from now on, where they fail."""
        found = self._tally.tried(f"'{self.files[index]}'", work)
        if found is None:
            self._failed.add(index)
        return found

    def scores(
        self, index: int, detector: Detector, before: Sequence[float] = ()
    ) -> tuple[np.ndarray, float]:
        """Raw scores of a file averaged over segments, float32 (H, W), and its level.

        Args:
            before: see `Detector.detect`.
        """
        image, original, edits = self.edited(index, detector)
        raw = detector.compare(image, original, edits)
        return detector.scores(raw, detector.segment(image, raw), before)

    def compare(self, distance: Distance) -> None:
        """See `NominalImages`."""
        detector = Detector.from_parts(
            self.profile, self.parts, distance=distance, calibrated=False
        )
        for index in self:
            self.tried(index, partial(self._compare, index, detector))
            self._progress(index + 1, len(self.files), "differences")

    def _compare(self, index: int, detector: Detector) -> np.ndarray:
        return detector.compare(*self.edited(index, detector, keep=True))

    def sample(self, count: int, lights: int = 0) -> Tensor:
        """See `NominalImages`."""
        indices = list(self)
        return sample_features(
            self.parts.plain_features(self.profile.parts.features),
            [self.files[index] for index in indices],
            count,
            self._seed,
            lights,
            lambda done: self._progress(self._indices[0] + done, len(self.files), "memory"),
            lambda number, work: self.tried(indices[number], work),
        )

    def edited(
        self, index: int, detector: Detector, *, keep: bool = False
    ) -> tuple[np.ndarray, Tensor, Tensor]:
        """The image, uint8 RGB (H, W, 3), what was edited (1, 3, h, w), and edits (K, 3, h, w)."""
        image = read_rgb(self.files[index])
        file = self._folder / f"{index}.npy" if self._folder else None
        if file is not None and file.exists():
            both = torch.from_numpy(np.load(file, allow_pickle=False)).to(detector.device)
            return image, both[:1], both[1:]
        inputs, edits = self.edit(detector, image)
        if file is not None and keep:
            np.save(file, torch.cat([inputs, edits]).float().cpu().numpy())
        return image, inputs, edits

    def edit(self, detector: Detector, image: np.ndarray) -> tuple[Tensor, Tensor]:
        """What is edited of an image (1, 3, h, w), and its edits (K, 3, h, w)."""
        inputs, edits = detector.synthesize([image])
        return inputs, edits[0]
