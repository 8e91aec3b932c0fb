"""A sum of similarity kernels, any of whose settings may change over the diffusion time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from anomaly_detector_ros.runtime.parts import read_settings
from anomaly_detector_ros.synthesis.similarity import SIMILARITIES, Similarity


@dataclass(frozen=True)
class Scheduled:
    """A number that goes from ``first`` (noisiest) to ``last`` (clean image); ``fixed``: is last.

    ``linear`` is linear in the diffusion time, ``log`` in the number's logarithm.
    """

    first: float
    last: float
    schedule: Literal["fixed", "linear", "log"] = "linear"

    def at(self, time: float) -> float:
        """The number at a share of the diffusion time; see `Similarity.at`."""
        if self.schedule == "log":
            return float(self.last * (self.first / self.last) ** time)
        return self.last + (self.first - self.last) * (time if self.schedule == "linear" else 0)


@SIMILARITIES.register("sum")
@dataclass(frozen=True, kw_only=True)
class KernelSum(Similarity):
    """log r_sim = guidance_scale * sum of the kernels' own.

    Attributes:
        kernels: of each its ``name`` and settings; ``{first: A, last: B, schedule: log}`` stands
            for a number that changes.
        time: the share of the diffusion time that `at` gives it.
    """

    guidance_scale: float = 1.0
    kernels: tuple[Mapping[str, Any], ...]
    time: float = 0.0

    def at(self, time: float) -> KernelSum:
        """See `Similarity.at`."""
        return replace(self, time=time)

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Similarity.log_prob`; the gradient is found by automatic differentiation."""
        kernels = [SIMILARITIES.read(self._now(settings)) for settings in self.kernels]
        return self.guidance_scale * torch.stack([each.log_prob(x, y) for each in kernels]).sum(0)

    def _now(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        changing = {key: value for key, value in settings.items() if isinstance(value, Mapping)}
        now = {k: read_settings(Scheduled, v, k).at(self.time) for k, v in changing.items()}
        return {**settings, **now}
