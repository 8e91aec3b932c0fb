"""Gaussian data, for which the denoiser, the guidance and the target are known in closed form.

With pixels x_0 ~ N(m, diag(s^2)), p(x_0 | x_t) is Gaussian, and so is its product with the Gaussian
r_sim: what Algorithm 1 approximates can be compared with the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anomaly_detector_ros.synthesis.guidance import Guidance
from anomaly_detector_ros.synthesis.guidance.noisy import Forward, Mismatched
from anomaly_detector_ros.synthesis.guidance.reverse import Reverse
from anomaly_detector_ros.synthesis.schedule import Schedule
from anomaly_detector_ros.synthesis.similarity.norms import GaussianSimilarity


class GaussianDenoiser:
    """The optimal denoiser of independent Gaussian pixels.

    Args:
        schedule: any noise schedule; the prediction type does not matter.
        mean, std: m and s, broadcast to (B, C, H, W).
    """

    def __init__(self, schedule: Schedule, mean: Tensor | float, std: Tensor | float) -> None:
        self.schedule = schedule
        self.mean, self.std = torch.as_tensor(mean), torch.as_tensor(std)

    def __call__(self, x: Tensor, t: int) -> Tensor:
        """E[x_0 | x_t] = m + J (x_t - sqrt(abar_t) m), J = sqrt(abar_t) v / (1 - abar_t)."""
        alpha, _ = self.schedule.alpha_sigma(t, x)
        return self.mean + self.jacobian(x, t) * (x - alpha * self.mean)

    def variance(self, x: Tensor, t: int) -> Tensor:
        """v, the variance of p(x_0 | x_t), at x_t (B, C, H, W): 1 / (1/s^2 + abar / (1 - abar))."""
        alpha, sigma = self.schedule.alpha_sigma(t, x)
        return 1 / (1 / self.std**2 + alpha**2 / sigma**2)

    def jacobian(self, x: Tensor, t: int) -> Tensor:
        """The diagonal of J = d E[x_0 | x_t] / d x_t, at x_t (B, C, H, W)."""
        alpha, sigma = self.schedule.alpha_sigma(t, x)
        return alpha / sigma**2 * self.variance(x, t)

    def sample(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Images x_0 of the data, ``shape`` (B, C, H, W)."""
        return self.mean + self.std * torch.randn(tuple(shape), generator=generator)

    def target(self, similarity: GaussianSimilarity, x_input: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(x_0) r_sim(x_0, x_in), each (B, C, H, W)."""
        weight = 2 * similarity.weight(x_input)
        precision = 1 / self.std**2 + weight
        mean = (self.mean / self.std**2 + weight * x_input) / precision
        return mean, precision.rsqrt().expand_as(mean)


def exact_guidance(
    denoiser: GaussianDenoiser, similarity: GaussianSimilarity, mu: Tensor, x_input: Tensor, t: int
) -> Tensor:
    """The guidance without any approximation, as `Guidance.gradient` gives it.

    With p(x_0 | x_t = x) = N(x0_hat(x), v) the expectation is a Gaussian integral, and

        grad_x log E[r_sim(x_0, x_in) | x_t = x] = -2 lambda J (x0_hat(x) - x_in) / (1 + 2 lambda v)

    at ``mu`` (B, C, H, W): reverse matching, less where x_0 is uncertain.
    """
    gradient = similarity.grad(mu if t < 0 else denoiser(mu, t), x_input)
    if t < 0:
        return gradient
    damping = 1 + 2 * similarity.weight(mu) * denoiser.variance(mu, t)
    return denoiser.jacobian(mu, t) * gradient / damping


@dataclass(frozen=True)
class GuidanceErrors:
    """How far each approximation is from the exact guidance at one noise level.

    Attributes:
        noise_level: share of the diffusion angle; see `Schedule.timestep_at`.
        timestep: its timestep.
        reverse_exact, reverse_identity, forward, mismatched: ||g - g*|| / ||g*|| over all pixels;
            0 is exact, 1 is as far off as no guidance at all.
    """

    noise_level: float
    timestep: int
    reverse_exact: float
    reverse_identity: float
    forward: float
    mismatched: float


_APPROXIMATIONS: dict[str, Guidance] = {
    "reverse_exact": Reverse("exact"),
    "reverse_identity": Reverse("identity"),
    "forward": Forward(),
    "mismatched": Mismatched(),
}


def guidance_errors(
    denoiser: GaussianDenoiser,
    similarity: GaussianSimilarity,
    x_input: Tensor,
    *,
    noise_levels: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    seed: int = 0,
) -> list[GuidanceErrors]:
    """One row of relative errors per noise level, at samples x_t of the noised data.

    Args:
        x_input: (B, C, H, W); every pixel is one sample, so that a few thousand settle the rows.
        noise_levels: shares of the diffusion angle in [0, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for level in noise_levels:
        t = denoiser.schedule.timestep_at(level)
        x0 = denoiser.sample(x_input.shape, generator)
        noise = torch.randn(x_input.shape, generator=generator)
        x = denoiser.schedule.add_noise(x0, noise, t)
        exact = exact_guidance(denoiser, similarity, x, x_input, t)
        errors = {
            name: float((guidance.gradient(denoiser, similarity, x, x_input, t) - exact).norm())
            / float(exact.norm())
            for name, guidance in _APPROXIMATIONS.items()
        }
        rows.append(GuidanceErrors(level, t, **errors))
    return rows


def main() -> None:
    """Prints the errors for the paper's schedule, image size and guidance scale."""
    schedule = Schedule.named("sigmoid")
    x_input = torch.full((1, 3, 176, 216), -0.5)
    denoiser = GaussianDenoiser(schedule, mean=0.0, std=0.5)
    print("relative error of each guidance; data N(0, 0.5^2), input -0.5, guidance scale 1e4")
    print("noise level     t  " + "".join(f"{name:>18}" for name in _APPROXIMATIONS))
    for row in guidance_errors(denoiser, GaussianSimilarity(1e4), x_input):
        errors = "".join(f"{getattr(row, name):18.3f}" for name in _APPROXIMATIONS)
        print(f"{row.noise_level:11.1f}  {row.timestep:4d}  {errors}")


if __name__ == "__main__":
    main()
