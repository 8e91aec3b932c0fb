"""Samplers against closed forms: for Gaussian data the optimal denoiser and the target are known.

Data N(m, s^2 I) held to x_in by exp(-lambda ||x - x_in||^2) is the Gaussian of precision
1 / s^2 + 2 lambda about the precision-weighted mean.
"""

from functools import partial

import pytest
import torch

from anomaly_detector_ros.synthesis.guidance import (
    forward_matching,
    mismatched,
    reverse_matching,
)
from anomaly_detector_ros.synthesis.samplers import algorithm1, few_step, few_step_timesteps
from anomaly_detector_ros.synthesis.schedule import Schedule
from anomaly_detector_ros.synthesis.similarity import GaussianSimilarity

MEAN, STD, INPUT = 0.3, 0.4, -0.5
SHAPE = (1, 3, 64, 64)  # independent pixels: 12,288 samples at once


class GaussianDenoiser:
    """E[x_0 | x_t] for x_0 ~ N(MEAN, STD^2 I)."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def __call__(self, x: torch.Tensor, t: int) -> torch.Tensor:
        alpha, sigma = self.schedule.alpha_sigma(t, x)
        gain = STD**2 * alpha / (alpha**2 * STD**2 + sigma**2)
        return MEAN + gain * (x - alpha * MEAN)


def similarity_with_weight(weight: float) -> GaussianSimilarity:
    return GaussianSimilarity(weight * torch.Size(SHAPE[1:]).numel())


def product(weight: float) -> tuple[float, float]:
    precision = 1 / STD**2 + 2 * weight
    return (MEAN / STD**2 + 2 * weight * INPUT) / precision, precision**-0.5


def sample(sampler, weight: float, timesteps: int = 400, seed: int = 0, **settings):
    denoiser = GaussianDenoiser(Schedule.named("cosine", timesteps))
    x_input = torch.full(SHAPE, INPUT)
    generator = torch.Generator().manual_seed(seed)
    settings = {"clip": False, **settings}
    return sampler(
        denoiser, x_input, similarity_with_weight(weight), generator=generator, **settings
    )


def test_algorithm1_without_guidance_samples_the_data():
    x = sample(algorithm1, weight=0)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.012)
    assert float(x.std()) == pytest.approx(STD, rel=0.02)


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_algorithm1_samples_the_product_of_gaussians(weight):
    x = sample(algorithm1, weight)
    mean, std = product(weight)
    shift = MEAN - mean
    # x0_hat stands in for the whole posterior of x_0: a little too much guidance at high noise.
    assert float(x.mean()) == pytest.approx(mean, abs=0.1 * shift + 0.01)
    assert float(x.std()) == pytest.approx(std, rel=0.04)
    # The tolerance separates the target from the unguided distribution.
    assert shift > 0.05


@pytest.mark.parametrize("weight", [0.1, 0.3, 1.0])
def test_reverse_matching_is_nearer_the_product_than_the_others(weight):
    mean, _ = product(weight)
    errors = {
        guidance.__name__: abs(float(sample(algorithm1, weight, guidance=guidance).mean()) - mean)
        for guidance in (reverse_matching, mismatched, forward_matching)
    }
    assert min(errors, key=errors.get) == "reverse_matching"


@pytest.mark.parametrize("weight", [0.0, 1.0, 20.0])
def test_few_step_from_pure_noise_samples_the_product_exactly(weight):
    x = sample(few_step, weight, noise_level=1.0, steps=200, data_std=STD)
    mean, std = product(weight)
    assert float(x.mean()) == pytest.approx(mean, abs=0.01)
    assert float(x.std()) == pytest.approx(std, rel=0.03)


def test_few_step_edits_more_from_a_higher_noise_level():
    low = sample(few_step, 0, noise_level=0.2, steps=20)
    high = sample(few_step, 0, noise_level=0.7, steps=20)
    assert abs(float(low.mean()) - INPUT) < 0.5 * abs(float(high.mean()) - INPUT)
    assert abs(float(high.mean()) - MEAN) < 0.5 * abs(INPUT - MEAN)


def test_jacobians_of_reverse_matching():
    denoiser = GaussianDenoiser(Schedule.named("cosine", 100))
    mu = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    x_input = torch.full(SHAPE, INPUT)
    similarity = similarity_with_weight(1.0)
    for t in (5, 60, 95):
        exact = reverse_matching(denoiser, similarity, mu, x_input, t)
        identity = reverse_matching(denoiser, similarity, mu, x_input, t, jacobian="identity")
        alpha, sigma = denoiser.schedule.alpha_sigma(t, mu)
        jacobian = STD**2 * alpha / (alpha**2 * STD**2 + sigma**2)
        torch.testing.assert_close(exact, jacobian * identity, atol=1e-5, rtol=1e-4)
    start = reverse_matching(denoiser, similarity, mu, x_input, -1)
    torch.testing.assert_close(start, -2 * (mu - x_input))


@pytest.mark.parametrize(
    "sampler",
    [
        partial(few_step, noise_level=0.6, steps=5),
        partial(algorithm1, guidance=partial(reverse_matching, jacobian="identity")),
    ],
)
def test_seeded_runs_are_bit_identical(sampler):
    first, second = (sample(sampler, 1.0, timesteps=30, clip=True) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, sample(sampler, 1.0, timesteps=30, clip=True, seed=1))


def test_callback_sees_every_step():
    steps = []
    x = sample(few_step, 1.0, noise_level=0.6, steps=4, callback=steps.append)
    assert [step.index for step in steps] == [0, 1, 2, 3]
    assert [step.timestep for step in steps] == sorted((s.timestep for s in steps), reverse=True)
    assert torch.equal(steps[-1].x, x)


def test_few_step_timesteps():
    schedule = Schedule.named("cosine", 1000)
    timesteps = few_step_timesteps(schedule, 0.6, 3)
    assert timesteps == [schedule.timestep_at(level) for level in (0.6, 0.4, 0.2)]
    with pytest.raises(ValueError, match="at least 1"):
        few_step_timesteps(schedule, 0.6, 0)


def test_few_step_numbers_are_pinned():
    """A full loop on a tiny deterministic denoiser: a change of the sampler shows here."""
    denoiser = GaussianDenoiser(Schedule.named("cosine", 1000))
    ramp = torch.linspace(-1, 1, 6).reshape(1, 1, 2, 3)
    noise = torch.tensor([1.0, -1, 0.5, -0.5, 2, 0]).reshape(1, 1, 2, 3)
    x = few_step(
        denoiser,
        ramp,
        GaussianSimilarity(6.0),
        noise_level=0.6,
        steps=3,
        data_std=STD,
        initial_noise=noise,
    )
    expected = []
    for value, z in zip(ramp.flatten().tolist(), noise.flatten().tolist(), strict=True):
        x_t = None
        for t, t_next in [(596, 394), (394, 193), (193, None)]:
            abar = float(denoiser.schedule.alphas_cumprod[t])
            if x_t is None:
                x_t = abar**0.5 * value + (1 - abar) ** 0.5 * z
            gain = STD**2 * abar**0.5 / (abar * STD**2 + 1 - abar)
            x0 = min(1, max(-1, MEAN + gain * (x_t - abar**0.5 * MEAN)))
            v = 1 / (1 / STD**2 + abar / (1 - abar))
            x0 = (x0 + 2 * v * value) / (1 + 2 * v)
            if t_next is not None:
                eps = (x_t - abar**0.5 * x0) / (1 - abar) ** 0.5
                nxt = float(denoiser.schedule.alphas_cumprod[t_next])
                x_t = nxt**0.5 * x0 + (1 - nxt) ** 0.5 * eps
        expected.append(x0)
    assert few_step_timesteps(denoiser.schedule, 0.6, 3) == [596, 394, 193]
    torch.testing.assert_close(x.flatten(), torch.tensor(expected), atol=1e-5, rtol=1e-5)
