"""What a detector needs to know of nominal images, in one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from anomaly_detector_ros.calibration.nominal import DEFAULT_CAMERA, NominalScores, pack, unpack
from anomaly_detector_ros.distances.base import WhitenedDistance
from anomaly_detector_ros.distances.novelty import NoveltyDistance
from anomaly_detector_ros.runtime.fitted_file import open_fitted, save_fitted

KIND = "calibration"

FittedDistance = WhitenedDistance | NoveltyDistance
"""A distance that is fitted to nominal images."""

_FORMAT = 2
_LIBRARIES = ("torch", "numpy")


@dataclass(frozen=True)
class Calibration:
    """What nominal images look like to a detector.

    Attributes:
        cameras: nominal scores by camera; `DEFAULT_CAMERA` is always there and stands for those
            that are not.
        fingerprint: what it was fitted for; see `building.fingerprint`.
        distance: that of all cameras, where it is one that is fitted.
        seed: that chose the images.
    """

    cameras: Mapping[str, NominalScores]
    fingerprint: Mapping[str, Any]
    distance: FittedDistance | None = None
    seed: int = 0

    def nominal(self, camera: str = DEFAULT_CAMERA) -> NominalScores:
        """The nominal scores of a camera: its own if it has some, else the default ones."""
        return self.cameras.get(camera, self.cameras[DEFAULT_CAMERA])

    def heatmap(self, scores: np.ndarray, camera: str = DEFAULT_CAMERA) -> np.ndarray:
        """Scores (H, W) -> float32 (H, W) in [0, 1], the share of nominal pixels with lower ones.

        The same score has the same value in every image of a camera.
        """
        return self.nominal(camera).distribution(scores).astype(np.float32)

    def save(self, path: Path) -> None:
        """Writes one safetensors file, whole or not at all; `load_calibration` reads it.

        Raises:
            OSError: the file cannot be written.
        """
        cameras, tensors = pack(self.cameras)
        if self.distance is not None:
            tensors |= self.distance.tensors()
        header = {
            "format": _FORMAT,
            "fingerprint": self.fingerprint,
            "cameras": cameras,
            "seed": self.seed,
        }
        save_fitted(path, KIND, header, tensors, _LIBRARIES)


def load_calibration(path: Path) -> Calibration:
    """A calibration as `Calibration.save` wrote it.

    Raises:
        UserError: missing, truncated or altered, or a file of another kind.
    """
    with open_fitted(path, KIND, "calibrate") as (header, tensors):
        if header["format"] != _FORMAT:
            raise ValueError(f"format {header['format']}, this release reads {_FORMAT}")
        return _restore(header, tensors)


def _restore(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Calibration:
    distance: FittedDistance | None = None
    if "memory" in tensors:
        distance = NoveltyDistance.from_tensors(tensors)
    elif "mean" in tensors:
        distance = WhitenedDistance.from_tensors(tensors)
    return Calibration(
        unpack(header["cameras"], tensors),
        dict(header["fingerprint"]),
        distance,
        int(header["seed"]),
    )
