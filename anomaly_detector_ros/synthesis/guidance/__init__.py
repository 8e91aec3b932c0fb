"""Guidance: how the similarity to the input steers a sampler.

A guidance is a frozen dataclass in a file of its own, registered in `GUIDANCES`. Samplers of many
small steps take its gradient. In a few long steps a gradient is unstable: there it says, in closed
form, where the guided step leads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from anomaly_detector_ros.runtime.parts import PartRegistry
from anomaly_detector_ros.synthesis.denoisers.base import Denoiser
from anomaly_detector_ros.synthesis.schedule import Schedule
from anomaly_detector_ros.synthesis.similarity import Similarity


@dataclass(frozen=True)
class Guidance(ABC):
    """What all guidances are asked for; samples are float (B, C, H, W).

    Attributes:
        jacobian: how a guidance that differentiates x0_hat takes its Jacobian: ``exact``
            back-propagates through the network, as the paper's text; ``identity`` takes it as 1,
            as the published code. All guidances have it, so that a profile can change its guidance
            alone.
    """

    jacobian: Literal["identity", "exact"] = "identity"

    @abstractmethod
    def gradient(
        self, denoiser: Denoiser, similarity: Similarity, mu: Tensor, x_input: Tensor, t: int
    ) -> Tensor:
        """An approximation of grad_x log E[r_sim(x_0, x_in) | x_t = x] at x = mu, like ``mu``.

        Args:
            mu: the mean of the reverse step to timestep ``t``.
            t: -1 stands for the clean image, where x0_hat is the identity.
        """

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
        """The clean image that a long step from x_t starts with; x0_hat where nothing guides it.

        Args:
            data_std: the standard deviation of the training data about its mean.
            clip: clip x0_hat to [-1, 1].
        """
        x0 = denoiser(x, t)
        return x0.clamp(-1, 1) if clip else x0

    def arrive(
        self,
        schedule: Schedule,
        similarity: Similarity,
        x: Tensor,
        x_input: Tensor,
        t: int,
        t_next: int,
    ) -> Tensor:
        """Where a long step from t to t' = ``t_next`` (-1: the clean image) leads, guided.

        Args:
            x: x_t', where it leads without.
        """
        return x


GUIDANCES: PartRegistry[Guidance] = PartRegistry("guidance", __name__)
