"""How many images pass through a detector's denoiser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anomaly_detector_ros.synthesis.spaces import space_of

if TYPE_CHECKING:
    from torch import Tensor

    from anomaly_detector_ros.detector import Detector
    from anomaly_detector_ros.synthesis.denoisers.base import Denoiser


@dataclass
class Passes:
    """Images through a network: a batch of B counts B.

    Attributes:
        forward: denoised.
        backward: differentiated (the exact Jacobian).
    """

    forward: int = 0
    backward: int = 0


@contextmanager
def counting(detector: Detector) -> Iterator[Passes]:
    """Counts the passes through the detector's denoiser meanwhile."""
    denoiser, passes = detector.denoiser, Passes()
    detector.denoiser = _Counted(denoiser, passes)
    try:
        yield passes
    finally:
        detector.denoiser = denoiser


class _Counted:
    """A denoiser whose passes are counted."""

    def __init__(self, denoiser: Denoiser, passes: Passes) -> None:
        self.denoiser, self.passes = denoiser, passes
        self.schedule, self.space = denoiser.schedule, space_of(denoiser)

    def __call__(self, x: Tensor, t: int) -> Tensor:
        self.passes.forward += len(x)
        x0 = self.denoiser(x, t)
        if x0.requires_grad:
            x0.register_hook(self._differentiated)
        return x0

    def _differentiated(self, gradient: Tensor) -> None:
        self.passes.backward += len(gradient)
