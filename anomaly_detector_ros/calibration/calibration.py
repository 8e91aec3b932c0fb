"""What a detector needs to know of nominal images, and the file that holds it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomaly_detector_ros.calibration.distribution import ScoreDistribution, ScorePool
from anomaly_detector_ros.calibration.drift import NominalLevels, fit_nominal_levels
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.runtime.fitted_file import digest, open_fitted, save_fitted

KIND = "calibration"

DEFAULT_CAMERA = ""
"""Stands for every camera that has no scores of its own."""

# Chosen on YCOR and the seabed; see docs/teach.md.
_TAUGHT_SHARE, _USUAL = 0.1, 5.0
_FORMAT = 2
_LIBRARIES = ("torch", "numpy")


@dataclass(frozen=True)
class NominalScores:
    """The scores of one camera's nominal frames, after averaging over segments.

    Attributes:
        distribution: of the scores of all pixels.
        levels: of the frames; None where they were too few to know.
        images, pixels: how many they are of.
    """

    distribution: ScoreDistribution
    levels: NominalLevels | None
    images: int
    pixels: int

    @classmethod
    def of(cls, pool: ScorePool) -> NominalScores:
        """Those of a pool.

        Raises:
            UserError: no two scores differ.
        """
        levels = fit_nominal_levels(pool.levels)
        return cls(pool.distribution(), levels, len(pool), pool.pixels)


@dataclass(frozen=True)
class Calibration:
    """What nominal images look like to a detector.

    Attributes:
        cameras: nominal scores by camera; `DEFAULT_CAMERA` is always there and stands for those
            that are not.
        fingerprint: what it was fitted for; see `building.fingerprint`.
        distance: what the distance of all cameras learnt, as `DistanceSettings.build` takes it;
            empty where it is not one that is fitted.
        seed: that chose the images.
        shared: the name of another calibration's file in the same folder, which holds the distance
            for both; "" where its own file does.
        lessons: nominal scores of what the distance was taught since, of all cameras; they are in
            force besides the camera's own, and not in the file.
    """

    cameras: Mapping[str, NominalScores]
    fingerprint: Mapping[str, Any]
    distance: Mapping[str, Tensor] = field(default_factory=dict)
    seed: int = 0
    shared: str = ""
    lessons: NominalScores | None = None

    def nominal(self, camera: str = DEFAULT_CAMERA) -> NominalScores:
        """The nominal scores of a camera: its own if it has some, else the default ones."""
        return self.cameras.get(camera, self.cameras[DEFAULT_CAMERA])

    def heatmap(
        self, scores: np.ndarray, camera: str = DEFAULT_CAMERA, *, taught: bool = True
    ) -> np.ndarray:
        """Scores (H, W) -> float32 (H, W) in [0, 1], the share of nominal pixels with lower ones.

        The same score has the same value in every image of a camera and terrain.

        Args:
            taught: whether the lessons' scores count besides; see `is_of_lessons`.
        """
        known = self.in_force(camera) if taught else self.nominal(camera).distribution
        return known(scores).astype(np.float32)

    def is_of_lessons(self, share: float, level: float, camera: str = DEFAULT_CAMERA) -> bool:
        """Whether a frame is of terrain that lessons are about, so that their scores count.

        It is not where hardly any place is more like what was taught, and the frame's level is one
        of the frames that the camera was calibrated on. So what scores high on new terrain does not
        hide anomalies on the old one.

        Args:
            share: see `Distance.taught_share`.
            level: `Detection.level`.
        """
        if self.lessons is None:
            return False
        levels = self.nominal(camera).levels
        usual = levels is not None and level <= levels.mean + _USUAL * levels.deviation
        return share >= _TAUGHT_SHARE or not usual

    def in_force(self, camera: str = DEFAULT_CAMERA) -> ScoreDistribution:
        """The distribution that makes the heatmap of a camera's scores."""
        own = self.nominal(camera).distribution
        if self.lessons is None:
            return own
        if camera not in self._joined:
            self._joined[camera] = own.lowered(self.lessons.distribution)
        return self._joined[camera]

    @functools.cached_property
    def _joined(self) -> dict[str, ScoreDistribution]:
        return {}

    def save(self, path: Path) -> None:
        """Writes one safetensors file, whole or not at all; `load_calibration` reads it.

        Raises:
            OSError: the file cannot be written.
        """
        cameras, tensors = pack(self.cameras)
        header: dict[str, Any] = {
            "format": _FORMAT,
            "fingerprint": self.fingerprint,
            "cameras": cameras,
            "seed": self.seed,
        }
        if self.shared:
            header["shared"] = {"file": self.shared, "sha256": digest(self.distance)}
        else:
            tensors |= self.distance
        save_fitted(path, KIND, header, tensors, _LIBRARIES)


def load_calibration(path: Path) -> Calibration:
    """A calibration as `Calibration.save` wrote it.

    Raises:
        UserError: missing, truncated or altered, or a file of another kind.
    """
    with open_fitted(path, KIND, "calibrate") as (header, tensors):
        if header["format"] != _FORMAT:
            raise ValueError(f"format {header['format']}, this release reads {_FORMAT}")
        cameras = unpack(header["cameras"], tensors)
        distance = {name: each for name, each in tensors.items() if not _is_of_a_camera(name)}
        shared = dict(header.get("shared", {"file": "", "sha256": ""}))
        name = Path(str(shared["file"])).name
        of, seed = dict(header["fingerprint"]), int(header["seed"])
    if name:
        distance = dict(load_calibration(path.with_name(name)).distance)
        if digest(distance) != shared["sha256"]:
            raise UserError(
                f"calibration '{path}' is for another '{name}' than the one beside it: run "
                "anomaly-detector calibrate again"
            )
    return Calibration(cameras, of, distance, seed, name)


def pack(cameras: Mapping[str, NominalScores]) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Scores by camera as a file holds them: what goes into its header, and its tensors."""
    entries: list[dict[str, Any]] = []
    tensors: dict[str, np.ndarray] = {}
    for index, (name, nominal) in enumerate(cameras.items()):
        # By number: a camera's name may hold anything.
        prefix = _prefix(index)
        entry: dict[str, Any] = {
            "name": name,
            "images": nominal.images,
            "pixels": nominal.pixels,
            "tail_scale": nominal.distribution.tail_scale,
        }
        tensors[f"{prefix}.scores"] = nominal.distribution.scores
        tensors[f"{prefix}.below"] = nominal.distribution.below
        if nominal.levels is not None:
            entry["levels"] = asdict(nominal.levels)
        entries.append(entry)
    # Copies: safetensors refuses tensors that share memory, as those of two cameras may.
    return entries, {name: torch.tensor(array) for name, array in tensors.items()}


def unpack(
    entries: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]
) -> dict[str, NominalScores]:
    """Scores by camera out of what `pack` returned.

    Raises:
        ValueError, KeyError, TypeError: a malformed file.
    """
    cameras = {
        str(entry["name"]): _unpack_one(_prefix(index), entry, tensors)
        for index, entry in enumerate(entries)
    }
    if DEFAULT_CAMERA not in cameras or len(cameras) != len(entries):
        raise ValueError("its cameras are not those of a calibration")
    return cameras


def _unpack_one(
    prefix: str, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> NominalScores:
    scores, below = (tensors[f"{prefix}.{name}"].numpy() for name in ("scores", "below"))
    # A file of an earlier release has none.
    levels = NominalLevels(**entry["levels"]) if "levels" in entry else None
    distribution = ScoreDistribution.checked(scores, below, float(entry["tail_scale"]))
    return NominalScores(distribution, levels, int(entry["images"]), int(entry["pixels"]))


def _prefix(index: int) -> str:
    return f"camera{index}"


def _is_of_a_camera(name: str) -> bool:
    prefix, dot, _ = name.partition(".")
    return bool(dot) and prefix.removeprefix("camera").isdecimal()
