"""What an edit costs the denoiser: passes through the network, and their operations."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from anomaly_detector_ros.benchmarking.counting import Passes, counting
from anomaly_detector_ros.benchmarking.rate import pass_flops
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.evaluation.cached import CachedParts
from anomaly_detector_ros.synthesis.denoisers.unet import UnetDenoiser
from anomaly_detector_ros.synthesis.schedule import Schedule

BACKWARD_PASSES = 2
"""What a backward pass counts beside its forward pass, which makes 3 of the two together."""


@dataclass(frozen=True)
class Cost:
    """Of all edits of one image.

    Attributes:
        forward, backward: passes through the denoiser; each edit of the image has its own.
        multiply_adds: of the denoiser in these passes; NaN where torch does not run it.
    """

    forward: int
    backward: int
    multiply_adds: float

    @property
    def passes(self) -> int:
        """Network passes, one with a backward pass counting 3."""
        return self.forward + BACKWARD_PASSES * self.backward


def cost_of(detector: Detector, parts: CachedParts) -> Cost:
    """What the detector's edits of one image cost its denoiser."""
    passes = count_passes(detector)
    forward, backward = _pass_multiply_adds(detector, parts)
    total = passes.forward * forward
    # Where there is no backward pass its operations, which may be unknown, don't matter.
    total += passes.backward * backward if passes.backward else 0.0
    return Cost(passes.forward, passes.backward, total)


def count_passes(detector: Detector) -> Passes:
    """Passes in the edits of one image, counted on a network that costs nothing.

    How often a sampler asks its denoiser depends on its settings and on the schedule, not on what
    the network answers.
    """
    light = copy.copy(detector)
    light.denoiser = _GreyDenoiser(detector.denoiser.schedule)
    with counting(light) as passes:
        light.synthesize([np.full((8, 8, 3), 128, np.uint8)])
    return passes


class _GreyDenoiser:
    """What a network trained on grey pictures alone would be."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def __call__(self, x: Tensor, t: int) -> Tensor:
        return 0.0 * x  # and not zeros: the exact Jacobian differentiates


def _pass_multiply_adds(detector: Detector, parts: CachedParts) -> tuple[float, float]:
    """Of one image's forward and backward pass."""
    denoiser = detector.denoiser
    if not isinstance(denoiser, UnetDenoiser):
        return math.nan, math.nan
    size = tuple(detector.profile.denoiser["size"])
    key = parts.edits_key(detector.profile)[0]
    flops = parts.cache.array("flops", key, lambda: np.array(pass_flops(denoiser, size)))
    forward, backward = (flops / 2).tolist()
    return forward, backward
