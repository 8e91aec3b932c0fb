"""What a detector needs to know of nominal images, in one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomaly_detector_ros.analysis.distances import WhitenedDistance
from anomaly_detector_ros.analysis.score_distribution import ScoreDistribution
from anomaly_detector_ros.fitted_file import open_fitted, save_fitted

KIND = "calibration"

_FORMAT = 1
_LIBRARIES = ("torch", "numpy")


@dataclass(frozen=True)
class Calibration:
    """What nominal images look like to a detector.

    Attributes:
        distribution: of the scores after averaging over segments.
        whitening: the whitened distance; None where another one is used.
        fingerprint: what it was fitted for; see `fingerprint.fingerprint`.
        images, pixels: how many it was fitted on.
        seed: that chose the images.
    """

    distribution: ScoreDistribution
    whitening: WhitenedDistance | None
    fingerprint: Mapping[str, Any]
    images: int
    pixels: int
    seed: int

    def heatmap(self, scores: np.ndarray) -> np.ndarray:
        """Scores (H, W) -> float32 (H, W) in [0, 1], the share of nominal pixels with lower ones.

        The same score has the same value in every image.
        """
        return self.distribution(scores).astype(np.float32)

    def save(self, path: Path) -> None:
        """Writes one safetensors file, whole or not at all; `load_calibration` reads it.

        Raises:
            OSError: the file cannot be written.
        """
        tensors = {
            "scores": torch.from_numpy(self.distribution.scores),
            "below": torch.from_numpy(self.distribution.below),
        }
        if self.whitening is not None:
            tensors |= {"mean": self.whitening.mean, "factor": self.whitening.factor}
        header = {
            "format": _FORMAT,
            "fingerprint": self.fingerprint,
            "tail_scale": self.distribution.tail_scale,
            "images": self.images,
            "pixels": self.pixels,
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
    scores, below = (tensors[name].numpy() for name in ("scores", "below"))
    tail_scale = float(header["tail_scale"])
    rising = all(np.diff(values).min() > 0 for values in (scores, below))
    if scores.shape != below.shape or not rising or not tail_scale > 0 or not 0 <= below[-1] < 1:
        raise ValueError("its distribution is not one")
    whitening = None
    if "mean" in tensors:
        channels = len(tensors["mean"])
        if tensors["factor"].shape != (channels, channels):
            raise ValueError("its whitening is not square")
        whitening = WhitenedDistance(tensors["mean"], tensors["factor"])
    return Calibration(
        ScoreDistribution(scores, below, tail_scale),
        whitening,
        dict(header["fingerprint"]),
        int(header["images"]),
        int(header["pixels"]),
        int(header["seed"]),
    )
