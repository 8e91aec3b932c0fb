"""Mismatched and forward matching: the noisy sample itself is compared with the input."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from anomaly_detector_ros.synthesis.denoisers.base import Denoiser
from anomaly_detector_ros.synthesis.guidance import GUIDANCES, Guidance
from anomaly_detector_ros.synthesis.schedule import Schedule
from anomaly_detector_ros.synthesis.similarity import Similarity


@GUIDANCES.register("mismatched")
@dataclass(frozen=True)
class Mismatched(Guidance):
    """grad_x log r_sim(x, x_in): the noisy mean against the clean input."""

    def gradient(
        self, denoiser: Denoiser, similarity: Similarity, mu: Tensor, x_input: Tensor, t: int
    ) -> Tensor:
        """See `Guidance.gradient`."""
        return similarity.grad(mu, self._target(denoiser.schedule, x_input, t))

    def arrive(
        self,
        schedule: Schedule,
        similarity: Similarity,
        x: Tensor,
        x_input: Tensor,
        t: int,
        t_next: int,
    ) -> Tensor:
        """The guided x_t' in closed form.

        Guidance g added to the score moves the DDIM step from t to t' by kappa g (Dhariwal &
        Nichol 2021, Algorithm 2). With g taken where the step arrives, not where it starts,

            x = x_t' + kappa grad_x log r_sim(x, y),
            kappa = sigma_t (sqrt(abar_t' / abar_t) sigma_t - sigma_t'),  sigma_t = sqrt(1 - abar_t)

        with y the input at its time. The solution is the mode of N(x; x_t', kappa I) r_sim(x, y):
        stable for every guidance scale.
        """
        abar = float(schedule.alphas_cumprod[t])
        abar_next = float(schedule.alphas_cumprod[t_next]) if t_next >= 0 else 1.0
        sigma, sigma_next = (1 - abar) ** 0.5, (1 - abar_next) ** 0.5
        kappa = sigma * ((abar_next / abar) ** 0.5 * sigma - sigma_next)
        return similarity.product_mode(x, kappa, self._target(schedule, x_input, t_next))

    def _target(self, schedule: Schedule, x_input: Tensor, t: int) -> Tensor:
        """What the sample at timestep t is compared with; -1 is the clean image."""
        return x_input


@GUIDANCES.register("forward")
@dataclass(frozen=True)
class Forward(Mismatched):
    """grad_x log r_sim(x, sqrt(abar_t) x_in): the input taken forward to the mean's time."""

    def _target(self, schedule: Schedule, x_input: Tensor, t: int) -> Tensor:
        return x_input if t < 0 else float(schedule.alphas_cumprod[t]) ** 0.5 * x_input
