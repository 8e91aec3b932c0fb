"""The guidance gradients of Algorithm 1: how the similarity to the input steers a reverse step.

Each function takes the mean ``mu`` of the reverse step to timestep ``t`` and returns an
approximation of grad_x log E[r_sim(x_0, x_in) | x_t = x] at ``x = mu``, shaped like ``mu``
(B, C, H, W). ``t = -1`` stands for the clean image, where x0_hat is the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from anomaly_detector_ros.synthesis.denoisers import Denoiser
from anomaly_detector_ros.synthesis.similarity import GaussianSimilarity

Jacobian = Literal["exact", "identity"]
Guidance = Callable[[Denoiser, GaussianSimilarity, Tensor, Tensor, int], Tensor]


def reverse_matching(
    denoiser: Denoiser,
    similarity: GaussianSimilarity,
    mu: Tensor,
    x_input: Tensor,
    t: int,
    jacobian: Jacobian = "exact",
) -> Tensor:
    """The paper's guidance: grad_x log r_sim(x0_hat(x), x_in), input and mean both at time 0.

    ``exact`` back-propagates through the network, as the paper's text; ``identity`` takes the
    Jacobian of x0_hat as 1, as the published code: one forward pass, no backward pass.
    """
    if t < 0:
        return similarity.grad(mu, x_input)
    if jacobian == "identity":
        return similarity.grad(denoiser(mu, t), x_input)
    with torch.enable_grad():
        x = mu.detach().requires_grad_(True)
        log_prob = similarity.log_prob(denoiser(x, t), x_input)
        (gradient,) = torch.autograd.grad(log_prob.sum(), x)
    return gradient


def mismatched(
    denoiser: Denoiser, similarity: GaussianSimilarity, mu: Tensor, x_input: Tensor, t: int
) -> Tensor:
    """grad_x log r_sim(x, x_in): the noisy mean against the clean input."""
    return similarity.grad(mu, x_input)


def forward_matching(
    denoiser: Denoiser, similarity: GaussianSimilarity, mu: Tensor, x_input: Tensor, t: int
) -> Tensor:
    """grad_x log r_sim(x, sqrt(abar_t) x_in): the input taken forward to the mean's time."""
    if t < 0:
        return similarity.grad(mu, x_input)
    alpha, _ = denoiser.schedule.alpha_sigma(t, mu)
    return similarity.grad(mu, alpha * x_input)
