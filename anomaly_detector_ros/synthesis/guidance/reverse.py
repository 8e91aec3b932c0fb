"""Reverse matching, the paper's guidance: input and sample are compared at time 0."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anomaly_detector_ros.synthesis.denoisers.base import Denoiser
from anomaly_detector_ros.synthesis.guidance import GUIDANCES, Guidance
from anomaly_detector_ros.synthesis.similarity import Similarity


@GUIDANCES.register("reverse")
@dataclass(frozen=True)
class Reverse(Guidance):
    """grad_x log r_sim(x0_hat(x), x_in); see `Guidance`.

    The identity Jacobian needs one forward pass and no backward pass.
    """

    def gradient(
        self, denoiser: Denoiser, similarity: Similarity, mu: Tensor, x_input: Tensor, t: int
    ) -> Tensor:
        """See `Guidance.gradient`."""
        if t < 0:
            return similarity.grad(mu, x_input)
        if self.jacobian == "identity":
            return similarity.grad(denoiser(mu, t), x_input)
        with torch.enable_grad():
            x = mu.detach().requires_grad_(True)
            log_prob = similarity.log_prob(denoiser(x, t), x_input)
            (gradient,) = torch.autograd.grad(log_prob.sum(), x)
        return gradient

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
        """Where N(x_0; x0_hat, C) r_sim(x_0, x_in) peaks, C the covariance of p(x_0 | x_t).

        ``identity`` takes C = v I, v = 1 / (1 / s^2 + abar / (1 - abar)), as if the data were
        N(m, s^2 I), s = ``data_std``; for the Gaussian kernel the peak is then

            (x0_hat + 2 lambda v x_in) / (1 + 2 lambda v).

        ``exact`` takes C = (1 - abar) / sqrt(abar) J, J the Jacobian of x0_hat (Tweedie's formula),
        by back-propagating through the network: the pull spreads over pixels that depend on each
        other. It goes to the peak along C g, g the kernel's gradient at x0_hat (one step of
        preconditioned steepest descent; see `_distance_to_peak`), and is clipped there, too. For
        data N(m, s^2 I) both are the exact guidance.
        """
        abar = float(denoiser.schedule.alphas_cumprod[t])
        exact = self.jacobian == "exact"
        with torch.set_grad_enabled(exact):
            x = x.detach().requires_grad_(exact)
            unclipped = denoiser(x, t)
        x0 = unclipped.detach()
        x0 = x0.clamp(-1, 1) if clip else x0
        if not exact:
            variance = 1 / (1 / data_std**2 + abar / (1 - abar))
            return similarity.product_mode(x0, variance, x_input)
        gradient = similarity.grad(x0, x_input)
        (pull,) = torch.autograd.grad(unclipped, x, gradient)
        direction = (1 - abar) / abar**0.5 * pull
        guided: Tensor = x0 + _distance_to_peak(gradient, direction, x_input - x0) * direction
        return guided.clamp(-1, 1) if clip else guided


def _distance_to_peak(gradient: Tensor, direction: Tensor, difference: Tensor) -> Tensor:
    """How far along ``direction`` = C g the product of N(0, C) and the kernel peaks: (B, 1, 1, 1).

    With the kernel taken as w / 2 times the squared distance to the input, w = ||g|| / ||r|| and r
    the ``difference`` from the input, the distance is g'Cg / (g'Cg + w ||Cg||^2), in [0, 1]: the
    way is never longer than r. For the Gaussian kernel w = 2 lambda.
    """
    tiny = torch.finfo(gradient.dtype).tiny
    # A trained network's C is not quite positive definite: never go against the gradient.
    rise = (gradient * direction).sum((1, 2, 3), keepdim=True).clamp_min(0)
    weight = _norm(gradient) / _norm(difference).clamp_min(tiny)
    return rise / (rise + weight * _norm(direction).square()).clamp_min(tiny)


def _norm(image: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(image, dim=(1, 2, 3), keepdim=True)
    return norm
