"""What a detector needs to know of nominal images, in one file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anomaly_detector_ros.analysis.distances import WhitenedDistance
from anomaly_detector_ros.analysis.score_distribution import ScoreDistribution
from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.files import replace_file

HEADER = "anomaly_detector_ros.calibration"
"""Key of the file's metadata under which the header stands, as JSON."""

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
        from safetensors.numpy import save

        tensors = {"scores": self.distribution.scores, "below": self.distribution.below}
        if self.whitening is not None:
            tensors["mean"] = self.whitening.mean.cpu().numpy()
            # safetensors writes memory as it lies, whatever its strides.
            tensors["factor"] = self.whitening.factor.cpu().contiguous().numpy()
        header = {
            "format": _FORMAT,
            "fingerprint": self.fingerprint,
            "tail_scale": self.distribution.tail_scale,
            "images": self.images,
            "pixels": self.pixels,
            "seed": self.seed,
            "libraries": {library: version(library) for library in _LIBRARIES},
            "sha256": _digest(tensors),
        }
        data = save(tensors, metadata={HEADER: json.dumps(header)})
        replace_file(path, lambda partial: partial.write_bytes(data))


def load_calibration(path: Path) -> Calibration:
    """A calibration as `Calibration.save` wrote it.

    Raises:
        UserError: missing, truncated or altered, or a file of another kind.
    """
    from safetensors import SafetensorError, safe_open

    refusal = f"'{path}' is no calibration: give a file that `anomaly-detector calibrate` wrote"
    try:
        with safe_open(path, "np") as file:
            text = (file.metadata() or {}).get(HEADER)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        reason = one_line(error, 200)
        raise UserError(f"cannot read calibration '{path}' ({reason}): give another") from error
    except (SafetensorError, TypeError) as error:  # TypeError: a type that NumPy does not have
        raise UserError(f"{refusal} ({one_line(error, 200)})") from error
    if text is None:
        raise UserError(refusal)
    try:
        header = json.loads(text)
        if header["format"] != _FORMAT:
            raise ValueError(f"format {header['format']}, this release reads {_FORMAT}")
        if header["sha256"] != _digest(tensors):
            raise ValueError("it is altered, its sha256 does not fit")
        return _restore(header, tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{refusal} ({one_line(error, 200)})") from error


def _restore(header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Calibration:
    scores, below = tensors["scores"], tensors["below"]
    tail_scale = float(header["tail_scale"])
    rising = all(np.diff(values).min() > 0 for values in (scores, below))
    if scores.shape != below.shape or not rising or not tail_scale > 0 or not 0 <= below[-1] < 1:
        raise ValueError("its distribution is not one")
    whitening = None
    if "mean" in tensors:
        channels = len(tensors["mean"])
        if tensors["factor"].shape != (channels, channels):
            raise ValueError("its whitening is not square")
        whitening = WhitenedDistance(*(torch.tensor(tensors[n]) for n in ("mean", "factor")))
    return Calibration(
        ScoreDistribution(scores, below, tail_scale),
        whitening,
        dict(header["fingerprint"]),
        int(header["images"]),
        int(header["pixels"]),
        int(header["seed"]),
    )


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    """sha256 of the arrays' names and bytes."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(name.encode())
        sha.update(tensors[name].tobytes())
    return sha.hexdigest()
