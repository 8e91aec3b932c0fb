"""Guidance: how the similarity to the input steers a reverse step.

Algorithm 1 takes a gradient. `reverse_matching`, `mismatched` and `forward_matching` take the mean
``mu`` of the reverse step to timestep ``t`` and return an approximation of
grad_x log E[r_sim(x_0, x_in) | x_t = x] at ``x = mu``, shaped like ``mu`` (B, C, H, W). ``t = -1``
stands for the clean image, where x0_hat is the identity.

The few-step sampler's steps are too long for a gradient. `reverse_product` and `noisy_product`
solve for the guided point instead, and so are stable however large the guidance scale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from anomaly_detector_ros.synthesis.denoisers.base import Denoiser
from anomaly_detector_ros.synthesis.schedule import Schedule
from anomaly_detector_ros.synthesis.similarity import Similarity

Jacobian = Literal["exact", "identity"]
Guidance = Callable[[Denoiser, Similarity, Tensor, Tensor, int], Tensor]


def reverse_matching(
    denoiser: Denoiser,
    similarity: Similarity,
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
    denoiser: Denoiser, similarity: Similarity, mu: Tensor, x_input: Tensor, t: int
) -> Tensor:
    """grad_x log r_sim(x, x_in): the noisy mean against the clean input."""
    return similarity.grad(mu, x_input)


def forward_matching(
    denoiser: Denoiser, similarity: Similarity, mu: Tensor, x_input: Tensor, t: int
) -> Tensor:
    """grad_x log r_sim(x, sqrt(abar_t) x_in): the input taken forward to the mean's time."""
    if t < 0:
        return similarity.grad(mu, x_input)
    alpha, _ = denoiser.schedule.alpha_sigma(t, mu)
    return similarity.grad(mu, alpha * x_input)


def reverse_product(
    denoiser: Denoiser,
    similarity: Similarity,
    x: Tensor,
    x_input: Tensor,
    t: int,
    *,
    data_std: float,
    jacobian: Jacobian = "identity",
    clip: bool = True,
) -> Tensor:
    """Reverse matching in closed form: the guided clean image at x_t, (B, C, H, W).

    The clean image is sought where N(x_0; x0_hat, C) r_sim(x_0, x_in) peaks, C the covariance of
    p(x_0 | x_t). ``identity`` takes C = v I, v = 1 / (1 / s^2 + abar / (1 - abar)), as if the data
    were N(m, s^2 I); for the Gaussian kernel the peak is then

        (x0_hat + 2 lambda v x_in) / (1 + 2 lambda v).

    ``exact`` takes C = (1 - abar) / sqrt(abar) J, J the Jacobian of x0_hat (Tweedie's formula), by
    back-propagating through the network: the pull spreads over pixels that depend on each other.
    It goes to the peak along C g, g the kernel's gradient at x0_hat (one step of preconditioned
    steepest descent; see `_distance_to_peak`). For data N(m, s^2 I) both are the exact guidance.

    Args:
        data_std: s, the standard deviation of the training data about its mean; for ``identity``.
        clip: clip x0_hat, and what ``exact`` returns, to [-1, 1].
    """
    abar = float(denoiser.schedule.alphas_cumprod[t])
    with torch.set_grad_enabled(jacobian == "exact"):
        x = x.detach().requires_grad_(jacobian == "exact")
        unclipped = denoiser(x, t)
    x0 = unclipped.detach()
    x0 = x0.clamp(-1, 1) if clip else x0
    if jacobian == "identity":
        return identity_product(denoiser.schedule, similarity, x0, x_input, t, data_std=data_std)
    gradient = similarity.grad(x0, x_input)
    (pull,) = torch.autograd.grad(unclipped, x, gradient)
    direction = (1 - abar) / abar**0.5 * pull
    x0 = x0 + _distance_to_peak(gradient, direction, x_input - x0) * direction
    return x0.clamp(-1, 1) if clip else x0


def identity_product(
    schedule: Schedule,
    similarity: Similarity,
    x0: Tensor,
    x_input: Tensor,
    t: int,
    *,
    data_std: float,
) -> Tensor:
    """`reverse_product` with the identity Jacobian, from x0_hat at x_t rather than from x_t."""
    abar = float(schedule.alphas_cumprod[t])
    variance = 1 / (1 / data_std**2 + abar / (1 - abar))
    return similarity.product_mode(x0, variance, x_input)


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
    return torch.linalg.vector_norm(image, dim=(1, 2, 3), keepdim=True)


def noisy_product(
    schedule: Schedule,
    similarity: Similarity,
    x: Tensor,
    x_input: Tensor,
    t: int,
    t_next: int,
    *,
    forward: bool,
) -> Tensor:
    """Mismatched and forward matching in closed form: the guided x_t', t' = ``t_next``.

    Guidance g added to the score moves the DDIM step from t to t' by kappa g (Dhariwal & Nichol
    2021, Algorithm 2). With g taken where the step arrives, not where it starts,

        x = x_t' + kappa grad_x log r_sim(x, y),
        kappa = sigma_t (sqrt(abar_t' / abar_t) sigma_t - sigma_t'),  sigma_t = sqrt(1 - abar_t),

    whose solution is the mode of N(x; x_t', kappa I) r_sim(x, y): stable for every guidance scale.

    Args:
        x: x_t', where the unguided step arrives.
        t: the timestep that the step started from.
        t_next: the timestep it arrives at; -1 for the clean image.
        forward: y = sqrt(abar_t') x_in (forward matching) or x_in (mismatched).
    """
    abar = float(schedule.alphas_cumprod[t])
    abar_next = float(schedule.alphas_cumprod[t_next]) if t_next >= 0 else 1.0
    sigma, sigma_next = (1 - abar) ** 0.5, (1 - abar_next) ** 0.5
    kappa = sigma * ((abar_next / abar) ** 0.5 * sigma - sigma_next)
    target = abar_next**0.5 * x_input if forward else x_input
    return similarity.product_mode(x, kappa, target)
