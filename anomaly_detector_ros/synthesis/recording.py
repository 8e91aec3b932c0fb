"""Pictures of an edit on its way from noise."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from anomaly_detector_ros.runtime.tensors import to_pictures
from anomaly_detector_ros.synthesis.samplers import SamplerStep
from anomaly_detector_ros.synthesis.spaces import Space


class Recorder:
    """A sampler's callback that keeps pictures of the first sample of its batch.

    Args:
        space: the denoiser's; latents are decoded.
        count: pictures at most, evenly spread over the steps.

    Attributes:
        pictures: uint8 RGB (H, W, 3) at the size of the edit: what the kept steps started from,
            then the edit.
    """

    def __init__(self, space: Space, count: int = 50) -> None:
        self.pictures: list[np.ndarray] = []
        self._space, self._steps = space, max(1, count - 1)

    def __call__(self, step: SamplerStep) -> None:
        """Keeps the step, or not."""
        kept = [i * self._steps // step.count for i in (step.index, step.index - 1)]
        if step.index == 0 or kept[0] != kept[1]:
            self._keep(step.before)
        if step.index == step.count - 1:
            self._keep(step.x)

    def _keep(self, samples: Tensor) -> None:
        self.pictures.append(to_pictures(self._space.decode(samples[:1]))[0])
