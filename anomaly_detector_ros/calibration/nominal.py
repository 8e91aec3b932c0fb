"""What the nominal scores of a camera are like, and how a file holds those of several cameras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomaly_detector_ros.calibration.distribution import ScoreDistribution, ScorePool
from anomaly_detector_ros.calibration.drift import LEVELS, NominalFrames, fit_nominal_frames

DEFAULT_CAMERA = ""
"""Stands for every camera that has no scores of its own."""


@dataclass(frozen=True)
class NominalScores:
    """The scores of one camera's nominal frames, after averaging over segments.

    Attributes:
        distribution: of the scores of all pixels.
        frames: how single frames differ from it; None where they were too few to know.
        images, pixels: how many they are of.
    """

    distribution: ScoreDistribution
    frames: NominalFrames | None
    images: int
    pixels: int

    @classmethod
    def of(cls, pool: ScorePool) -> NominalScores:
        """Those of a pool, whose images must be in the order they were taken in.

        Raises:
            UserError: no two scores differ.
        """
        distribution = pool.distribution()
        frames = fit_nominal_frames(pool.shares(distribution))
        return cls(distribution, frames, len(pool), pool.pixels)


def pack(cameras: Mapping[str, NominalScores]) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Scores by camera as a file holds them: what goes into its header, and its tensors."""
    entries: list[dict[str, Any]] = []
    tensors: dict[str, np.ndarray] = {}
    for index, (name, nominal) in enumerate(cameras.items()):
        # By number: a camera's name may hold anything.
        prefix = f"camera{index}"
        entry: dict[str, Any] = {
            "name": name,
            "images": nominal.images,
            "pixels": nominal.pixels,
            "tail_scale": nominal.distribution.tail_scale,
        }
        tensors[f"{prefix}.scores"] = nominal.distribution.scores
        tensors[f"{prefix}.below"] = nominal.distribution.below
        if nominal.frames is not None:
            entry["frames"] = {"largest": nominal.frames.largest, "level": nominal.frames.level}
            tensors[f"{prefix}.mean"] = nominal.frames.mean
            tensors[f"{prefix}.whitening"] = nominal.frames.whitening
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
        str(entry["name"]): _unpack_one(f"camera{index}", entry, tensors)
        for index, entry in enumerate(entries)
    }
    if DEFAULT_CAMERA not in cameras or len(cameras) != len(entries):
        raise ValueError("its cameras are not those of a calibration")
    return cameras


def _unpack_one(
    prefix: str, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> NominalScores:
    scores, below = (tensors[f"{prefix}.{name}"].numpy() for name in ("scores", "below"))
    tail_scale = float(entry["tail_scale"])
    rising = all(np.diff(values).min() > 0 for values in (scores, below))
    if scores.shape != below.shape or not rising or not tail_scale > 0 or not 0 <= below[-1] < 1:
        raise ValueError("its distribution is not one")
    images = int(entry["images"])
    frames = None
    if "frames" in entry:
        mean, whitening = (tensors[f"{prefix}.{name}"].numpy() for name in ("mean", "whitening"))
        if mean.shape != LEVELS.shape or whitening.shape != (len(LEVELS), len(LEVELS)):
            raise ValueError("its frames are compared at other levels")
        found = entry["frames"]
        frames = NominalFrames(
            mean, whitening, images, float(found["largest"]), float(found["level"])
        )
    return NominalScores(
        ScoreDistribution(scores, below, tail_scale), frames, images, int(entry["pixels"])
    )
