"""DDAD's conditioning (Mousakhan et al. 2023, arXiv 2305.15956) as a guidance.

The input noised with the sample's own noise, y_t = sqrt(abar) y + sqrt(1 - abar) eps, pulls the
noise estimate: eps - w sqrt(1 - abar) (y_t - x_t). As y_t - x_t = sqrt(abar) (y - x0_hat), that is
the gradient g = w sqrt(abar) (y - x0_hat), and moves x0_hat by w (1 - abar) (y - x0_hat).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from anomaly_detector_ros.synthesis.denoisers.base import Denoiser
from anomaly_detector_ros.synthesis.guidance import GUIDANCES, Guidance
from anomaly_detector_ros.synthesis.similarity import Similarity


@GUIDANCES.register("ddad")
@dataclass(frozen=True)
class Ddad(Guidance):
    """Pulls towards the input, less and less as the noise goes; no kernel has a say.

    Attributes:
        weight: w; 0 holds the edit to nothing.
    """

    weight: Annotated[float, Ge(0)] = 1.0

    def gradient(
        self, denoiser: Denoiser, similarity: Similarity, mu: Tensor, x_input: Tensor, t: int
    ) -> Tensor:
        """For samplers of small steps."""
        if t < 0:
            return self.weight * (x_input - mu)
        alpha, _ = denoiser.schedule.alpha_sigma(t, mu)
        return self.weight * alpha * (x_input - denoiser(mu, t))

    def clean(
        self,
        denoiser: Denoiser,
        similarity: Similarity,
        x: Tensor,
        x_input: Tensor,
        t: int,
        *,
        data_std: float,
        clip: bool,
    ) -> Tensor:
        """For ``few_step``: DDIM, as in the paper."""
        x0, (_, sigma) = denoiser(x, t), denoiser.schedule.alpha_sigma(t, x)
        x0 = x0.clamp(-1, 1) if clip else x0
        return x0 + self.weight * sigma**2 * (x_input - x0)
