"""Fitting a calibration on nominal images, and measuring what it promises on others."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anomaly_detector_ros.building import Parts, fingerprint
from anomaly_detector_ros.calibration.calibration import Calibration
from anomaly_detector_ros.calibration.distribution import ScorePool
from anomaly_detector_ros.calibration.nominal import DEFAULT_CAMERA, NominalScores
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.distances.base import distance_settings
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.fitting.distance import Progress, fit_distance, folds
from anomaly_detector_ros.imaging.images import read_rgb
from anomaly_detector_ros.profiles import Profile
from anomaly_detector_ros.runtime.statistics import draw, interval

RATES = (0.05, 0.02, 0.01, 0.005, 0.001)
"""False-positive rates that are asked for and measured."""

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
    seed: int = 0,
    progress: Progress = lambda done, total, doing: None,
) -> Calibration:
    """The calibration of a profile, whose own, if it has one, is not looked at.

    A whitened distance needs two passes over the images; the edits are made once. What a distance
    was fitted on looks more nominal to it than anything else. So the images are parted into folds
    of neighbours, and the scores of each fold come from a distance fitted on the others, as in
    Barber et al., "Predictive inference with the jackknife+", Annals of Statistics 2021.

    Args:
        files: nominal images; neighbours in a video stand side by side.
        memory: other nominal images, such as those the denoiser was trained on, for the memory of
            the novelty distance; then it needs no folds.
        seed: of what is drawn; goes into the file.

    Raises:
        UserError: unknown distance, an image that cannot be read, images that are all alike, or a
            single one where two are needed.
    """
    settings = distance_settings(profile.distance)
    profile = replace(profile, distance=settings, calibration={})
    pool = ScorePool()
    with tempfile.TemporaryDirectory(prefix="anomaly-detector-") as folder:
        edited = _Edits(files, Path(folder) if settings["name"] == "whitened" else None)
        fitted, distances = fit_distance(profile, parts, files, edited, memory, seed, progress)
        for fold, distance in zip(folds(files, len(distances)), distances, strict=True):
            detector = Detector.from_parts(profile, parts, distance=distance, calibrated=False)
            for index in fold:
                image, original, edits = edited(index, detector)
                raw = detector.compare(image, original, edits)
                pool.add(detector.refine(raw, detector.segment(image, raw)))
                progress(index + 1, len(files), "scores")
    of = fingerprint(profile, parts.registry)
    return Calibration({DEFAULT_CAMERA: NominalScores.of(pool)}, of, fitted, seed)


def fit_camera(
    detector: Detector,
    files: Sequence[Path],
    *,
    progress: Progress = lambda done, total, doing: None,
) -> NominalScores:
    """The nominal scores of one camera; the detector's distance stays what it is.

    Args:
        detector: its own calibration's scores are not looked at.
        files: nominal images of that camera, which the distance was not fitted on; neighbours in
            a video stand side by side.

    Raises:
        UserError: an image that cannot be read, or scores that are all alike.
    """
    pool = ScorePool()
    for index, file in enumerate(files):
        pool.add(detector.detect(read_rgb(file)).scores)
        progress(index + 1, len(files), "scores")
    return NominalScores.of(pool)


def measure(
    detector: Detector,
    files: Sequence[Path],
    *,
    camera: str = DEFAULT_CAMERA,
    rates: Sequence[float] = RATES,
    seed: int = 0,
    progress: Progress = lambda done, total, doing: None,
) -> list[FalsePositiveRate]:
    """How many nominal pixels reach the thresholds 1 - rate of a calibrated detector.

    Args:
        files: nominal images that the calibration was not fitted on.
        camera: whose images they are.
        rates: asked for.
        seed: of the bootstrap.
    """
    thresholds = 1 - np.asarray(rates)
    reaching = np.zeros((len(files), len(rates)))
    pixels = np.zeros((len(files), 1))
    for index, file in enumerate(files):
        heatmap = detector.detect(read_rgb(file), camera).heatmap
        reaching[index] = [np.count_nonzero(heatmap >= float(t)) for t in thresholds]
        pixels[index] = heatmap.size
        progress(index + 1, len(files), "held-out images")
    draws = draw(len(files), _RESAMPLES, seed)
    resampled = (draws @ reaching) / (draws @ pixels)
    measured = reaching.sum(0) / pixels.sum()
    found = []
    for rate, share, samples in zip(rates, measured, resampled.T, strict=True):
        low, high = interval(samples) if len(files) > 1 else (np.nan, np.nan)
        found.append(FalsePositiveRate(float(rate), float(share), float(low), float(high)))
    return found


class _Edits:
    """Images and their edits, for several passes.

    Args:
        files: of the images.
        folder: where edits are kept for the next pass; None to make them anew.
    """

    def __init__(self, files: Sequence[Path], folder: Path | None) -> None:
        self._files, self._folder = files, folder

    def __len__(self) -> int:
        return len(self._files)

    def __call__(self, index: int, detector: Detector) -> tuple[np.ndarray, Tensor, Tensor]:
        """The image, uint8 RGB (H, W, 3), what was edited (1, 3, h, w), and edits (K, 3, h, w)."""
        image = read_rgb(self._files[index])
        kept = self._folder / f"{index}.npy" if self._folder else None
        if kept is not None and kept.exists():
            both = torch.from_numpy(np.load(kept, allow_pickle=False)).to(detector.device)
            return image, both[:1], both[1:]
        inputs, edits = detector.synthesize([image])
        if kept is not None:
            np.save(kept, torch.cat([inputs, edits[0]]).float().cpu().numpy())
        return image, inputs, edits[0]
