"""Guidance against closed forms: for Gaussian data the exact guidance is known (Theorem 1)."""

import pytest
import torch

from anomaly_detector_ros.synthesis import gaussian
from anomaly_detector_ros.synthesis.gaussian import (
    GaussianDenoiser,
    exact_guidance,
    guidance_errors,
)
from anomaly_detector_ros.synthesis.guidance.noisy import Forward, Mismatched
from anomaly_detector_ros.synthesis.guidance.reverse import Reverse
from anomaly_detector_ros.synthesis.schedule import Schedule
from anomaly_detector_ros.synthesis.similarity.norms import GaussianSimilarity, L1Similarity

MEAN, STD, INPUT = 0.3, 0.4, -0.5
SHAPE = (1, 3, 16, 16)
SCHEDULE = Schedule.named("cosine", 100)
DENOISER = GaussianDenoiser(SCHEDULE, MEAN, STD)


def with_weight(weight: float, shape=SHAPE) -> GaussianSimilarity:
    return GaussianSimilarity(weight * torch.Size(shape[1:]).numel())


def noisy(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SHAPE, generator=generator, dtype=torch.float64)


X_INPUT = torch.full(SHAPE, INPUT, dtype=torch.float64)


@pytest.mark.parametrize("t", [5, 50, 95])
def test_exact_guidance_against_numerical_integration(t):
    """d/dx log of the integral of p(x_0 | x_t = x) r_sim(x_0, x_in), by sums and differences."""
    weight, abar = 2.0, float(SCHEDULE.alphas_cumprod[t])
    x0 = torch.linspace(-4, 4, 20001, dtype=torch.float64)

    def log_expectation(x: float) -> float:
        log_posterior = -((x - abar**0.5 * x0) ** 2) / (2 * (1 - abar))
        log_posterior = log_posterior - (x0 - MEAN) ** 2 / (2 * STD**2)
        log_similarity = -weight * (x0 - INPUT) ** 2
        return float((log_posterior + log_similarity).logsumexp(0) - log_posterior.logsumexp(0))

    shape = (1, 1, 1, 1)
    for x in (-0.8, 0.1, 1.2):
        point = torch.full(shape, x, dtype=torch.float64)
        target = torch.full(shape, INPUT, dtype=torch.float64)
        found = exact_guidance(DENOISER, with_weight(weight, shape), point, target, t)
        expected = (log_expectation(x + 1e-4) - log_expectation(x - 1e-4)) / 2e-4
        assert float(found) == pytest.approx(expected, rel=1e-4)


def test_jacobians_of_reverse_matching():
    mu, similarity = noisy(), with_weight(1.0)
    for t in (5, 60, 95):
        exact = Reverse("exact").gradient(DENOISER, similarity, mu, X_INPUT, t)
        identity = Reverse("identity").gradient(DENOISER, similarity, mu, X_INPUT, t)
        alpha, sigma = SCHEDULE.alpha_sigma(t, mu)
        jacobian = STD**2 * alpha / (alpha**2 * STD**2 + sigma**2)
        torch.testing.assert_close(exact, jacobian * identity)


@pytest.mark.parametrize(
    "gradient",
    [Reverse("exact").gradient, Mismatched().gradient, Forward().gradient, exact_guidance],
)
def test_all_agree_on_the_clean_image(gradient):
    mu = noisy()
    found = gradient(DENOISER, with_weight(1.0), mu, X_INPUT, -1)
    torch.testing.assert_close(found, -2 * (mu - X_INPUT))


def test_forward_and_mismatched_differ_by_the_inputs_scale():
    mu, similarity = noisy(), with_weight(1.0)
    alpha, _ = SCHEDULE.alpha_sigma(60, mu)
    forward = Forward().gradient(DENOISER, similarity, mu, X_INPUT, 60)
    torch.testing.assert_close(forward, -2 * (mu - alpha * INPUT))
    mismatched = Mismatched().gradient(DENOISER, similarity, mu, X_INPUT, 60)
    torch.testing.assert_close(mismatched, -2 * (mu - INPUT))


@pytest.mark.parametrize("weight", [0.1, 1.0, 10.0])
def test_reverse_matching_is_nearest_the_exact_guidance(weight):
    rows = guidance_errors(DENOISER, with_weight(weight), X_INPUT.float())
    for row in rows:
        assert row.reverse_exact < row.reverse_identity < row.forward < row.mismatched
        # Of the exact guidance only the damping by 1 + 2 lambda v is missing.
        variance = float(DENOISER.variance(X_INPUT, row.timestep))
        assert row.reverse_exact == pytest.approx(2 * weight * variance, rel=1e-3)
    assert [row.noise_level for row in rows] == sorted(row.noise_level for row in rows)
    high = rows[-1]
    assert high.reverse_exact < 0.05 * high.forward
    cleanest = guidance_errors(DENOISER, with_weight(weight), X_INPUT.float(), noise_levels=[0.0])[
        0
    ]
    assert cleanest.mismatched < 0.1


@pytest.mark.parametrize("weight", [0.5, 20.0])
@pytest.mark.parametrize("jacobian", ["identity", "exact"])
@pytest.mark.parametrize("t", [5, 50, 95])
def test_reverse_matching_is_the_exact_guidance(weight, jacobian, t):
    """Tweedie: guidance g moves the clean image by g (1 - abar) / sqrt(abar)."""
    x, similarity = noisy(), with_weight(weight)
    guided = Reverse(jacobian).clean(DENOISER, similarity, x, X_INPUT, t, data_std=STD, clip=False)
    alpha, sigma = SCHEDULE.alpha_sigma(t, x)
    exact = exact_guidance(DENOISER, similarity, x, X_INPUT, t)
    torch.testing.assert_close((guided - DENOISER(x, t)) * alpha / sigma**2, exact)


class Averaging:
    """A denoiser whose pixels depend on their neighbours, with a Jacobian of any size."""

    schedule = SCHEDULE

    def __init__(self, gain: float) -> None:
        self.gain = gain

    def __call__(self, x: torch.Tensor, t: int) -> torch.Tensor:
        return self.gain * torch.nn.functional.avg_pool2d(x, 3, 1, 1)


def moved(denoiser, x_input, weight: float, jacobian: str = "exact") -> torch.Tensor:
    x = noisy()
    guided = Reverse(jacobian).clean(
        denoiser, with_weight(weight), x, x_input, 50, data_std=STD, clip=False
    )
    return guided - denoiser(x, 50)


def test_exact_jacobian_spreads_the_pull_over_dependent_pixels():
    denoiser = Averaging(0.1)
    x_input = denoiser(noisy(), 50)
    x_input[0, 0, 8, 8] += 0.5
    assert int(moved(denoiser, x_input, 1.0, "identity").abs().gt(1e-9).sum()) == 1
    assert int(moved(denoiser, x_input, 1.0).abs().gt(1e-9).sum()) == 9


@pytest.mark.parametrize("gain", [0.1, 5.0])
@pytest.mark.parametrize("weight", [0.5, 50.0, 1e9])
def test_exact_jacobian_goes_to_the_peak_and_never_past_the_input(gain, weight):
    denoiser = Averaging(gain)
    move = moved(denoiser, X_INPUT, weight)
    difference = X_INPUT - denoiser(noisy(), 50)
    assert 0 < float(move.norm()) < float(difference.norm())
    # With move = Cz, the product along the way is -k^2 z'Cz / 2 - lambda ||k Cz - r||^2.
    abar = float(SCHEDULE.alphas_cumprod[50])
    gradient = 2 * weight * difference
    direction = (1 - abar) / abar**0.5 * denoiser(gradient, 50)  # this J is symmetric
    z = gradient * float(move.norm() / direction.norm())
    scales = torch.linspace(0, 3, 301, dtype=torch.float64)
    log_product = torch.stack(
        [
            -(k**2) * (z * move).sum() / 2 - weight * (k * move - difference).square().sum()
            for k in scales
        ]
    )
    assert float(scales[log_product.argmax()]) == pytest.approx(1.0, abs=0.011)


def test_exact_jacobian_never_goes_against_the_gradient():
    assert not moved(Averaging(-1.0), X_INPUT, 1.0).any()


@pytest.mark.parametrize("jacobian", ["identity", "exact"])
def test_reverse_matching_stays_in_range_when_clipped(jacobian):
    for scale in (0.0, 1e9):
        x0 = Reverse(jacobian).clean(
            DENOISER, GaussianSimilarity(scale), 10 * noisy(), X_INPUT, 20, data_std=STD, clip=True
        )
        assert float(x0.abs().max()) <= 1


@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize("t_next", [40, -1])
@pytest.mark.parametrize("similarity", [with_weight(3.0), L1Similarity(100.0)])
def test_a_noisy_guidance_solves_the_implicit_step(forward, t_next, similarity):
    t, arrived = 70, noisy()
    guidance = Forward() if forward else Mismatched()
    x = guidance.arrive(SCHEDULE, similarity, arrived, X_INPUT, t, t_next)
    abar = float(SCHEDULE.alphas_cumprod[t])
    abar_next = float(SCHEDULE.alphas_cumprod[t_next]) if t_next >= 0 else 1.0
    target = X_INPUT * abar_next**0.5 if forward else X_INPUT
    sigma, sigma_next = (1 - abar) ** 0.5, (1 - abar_next) ** 0.5
    kappa = sigma * ((abar_next / abar) ** 0.5 * sigma - sigma_next)
    away = (x - target).abs() > 1e-9  # L1 has no gradient where the input is reached
    guided = arrived + kappa * similarity.grad(x, target)
    torch.testing.assert_close(x[away], guided[away])
    assert away.any()


@pytest.mark.parametrize("forward", [True, False])
def test_a_noisy_guidance_is_stable_for_every_scale(forward):
    guidance = Forward() if forward else Mismatched()
    x = guidance.arrive(SCHEDULE, GaussianSimilarity(1e12), noisy(), X_INPUT, 99, 40)
    alpha, _ = SCHEDULE.alpha_sigma(40, X_INPUT)
    torch.testing.assert_close(x, (alpha if forward else 1) * X_INPUT, atol=1e-6, rtol=0)


def test_the_errors_can_be_printed(capsys):
    gaussian.main()
    head, *rows = capsys.readouterr().out.splitlines()[1:]
    assert head.split()[-4:] == ["reverse_exact", "reverse_identity", "forward", "mismatched"]
    last = [float(cell) for cell in rows[-1].split()]
    assert last[0] == 0.9
    # At high noise the paper's guidance is the closest, and each of the others farther off.
    assert last[2:] == sorted(last[2:])
