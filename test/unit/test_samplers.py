"""Samplers against closed forms: for Gaussian data the optimal denoiser and the target are known.

Data N(m, s^2 I) held to x_in by exp(-lambda ||x - x_in||^2) is the Gaussian of precision
1 / s^2 + 2 lambda about the precision-weighted mean.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch

from anomaly_detector_ros.synthesis.gaussian import GaussianDenoiser, exact_guidance
from anomaly_detector_ros.synthesis.guidance import Guidance
from anomaly_detector_ros.synthesis.guidance.noisy import Forward, Mismatched
from anomaly_detector_ros.synthesis.guidance.reverse import Reverse
from anomaly_detector_ros.synthesis.samplers import (
    Sampler,
    diffusion_time,
    evenly_spaced,
    normal_like,
)
from anomaly_detector_ros.synthesis.samplers.algorithm1 import Algorithm1
from anomaly_detector_ros.synthesis.samplers.ddim import Ddim
from anomaly_detector_ros.synthesis.samplers.few_step import FewStep, few_step_timesteps
from anomaly_detector_ros.synthesis.schedule import Schedule
from anomaly_detector_ros.synthesis.similarity.changed_fraction import ChangedFractionSimilarity
from anomaly_detector_ros.synthesis.similarity.norms import GaussianSimilarity, L1Similarity

MEAN, STD, INPUT = 0.3, 0.4, -0.5
SHAPE = (1, 3, 64, 64)  # independent pixels: 12,288 samples at once


def similarity_with_weight(weight: float) -> GaussianSimilarity:
    return GaussianSimilarity(weight * torch.Size(SHAPE[1:]).numel())


def product(weight: float) -> tuple[float, float]:
    precision = 1 / STD**2 + 2 * weight
    return (MEAN / STD**2 + 2 * weight * INPUT) / precision, precision**-0.5


def test_the_target_is_the_product_of_gaussians():
    denoiser = GaussianDenoiser(Schedule.named("cosine"), MEAN, STD)
    mean, std = denoiser.target(similarity_with_weight(2.0), torch.full(SHAPE, INPUT))
    assert mean.shape == std.shape == torch.Size(SHAPE)
    assert (float(mean.mean()), float(std.mean())) == pytest.approx(product(2.0))


def sample(sampler: Sampler, weight: float, timesteps: int = 400, callback=None) -> torch.Tensor:
    denoiser = GaussianDenoiser(Schedule.named("cosine", timesteps), MEAN, STD)
    sampler = replace(sampler, similarity=similarity_with_weight(weight), clip=False)
    generator = torch.Generator().manual_seed(0)
    return sampler(denoiser, torch.full(SHAPE, INPUT), generator=generator, callback=callback)


def test_algorithm1_without_guidance_samples_the_data():
    x = sample(Algorithm1(), weight=0)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.012)
    assert float(x.std()) == pytest.approx(STD, rel=0.02)


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_algorithm1_samples_the_product_of_gaussians(weight):
    x = sample(Algorithm1(Reverse("exact")), weight)
    mean, std = product(weight)
    shift = MEAN - mean
    # x0_hat stands in for the whole posterior of x_0: a little too much guidance at high noise.
    assert float(x.mean()) == pytest.approx(mean, abs=0.1 * shift + 0.01)
    assert float(x.std()) == pytest.approx(std, rel=0.04)
    # The tolerance separates the target from the unguided distribution.
    assert shift > 0.05


@dataclass(frozen=True)
class Exact(Guidance):
    def gradient(self, denoiser, similarity, mu, x_input, t):
        return exact_guidance(denoiser, similarity, mu, x_input, t)


@pytest.mark.parametrize("weight", [0.3, 3.0])
def test_algorithm1_with_exact_guidance_samples_the_product_exactly(weight):
    x = sample(Algorithm1(Exact()), weight)
    mean, std = product(weight)
    assert float(x.mean()) == pytest.approx(mean, abs=0.012)
    assert float(x.std()) == pytest.approx(std, rel=0.02)


def test_evenly_spaced_timesteps():
    assert evenly_spaced(999, 250)[:3] == [999, 995, 991]
    assert evenly_spaced(999, 250)[-1] == 3
    assert evenly_spaced(4, 2) == [4, 1]
    assert evenly_spaced(4, None) == evenly_spaced(4, 5) == evenly_spaced(4, 9) == [4, 3, 2, 1, 0]


@pytest.mark.parametrize("weight", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("sampler", [Algorithm1(Exact()), Ddim(Exact(), eta=1.0)])
def test_a_quarter_of_the_timesteps_samples_the_product(sampler, weight):
    x = sample(replace(sampler, timesteps=250), weight, timesteps=1000)
    mean, std = product(weight)
    assert float(x.mean()) == pytest.approx(mean, abs=0.012)
    assert float(x.std()) == pytest.approx(std, rel=0.03)


def from_noised_input(weight: float, noise_level: float) -> tuple[float, float]:
    """Mean and standard deviation of p(x_0 | x_t) r_sim(x_0, x_in) over x_t, the noised input."""
    denoiser = GaussianDenoiser(Schedule.named("cosine", 1000), MEAN, STD)
    t = denoiser.schedule.timestep_at(noise_level)
    point = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    alpha, sigma = denoiser.schedule.alpha_sigma(t, point)
    variance, gain = float(denoiser.variance(point, t)), float(denoiser.jacobian(point, t))
    kept = 1 / (1 + 2 * weight * variance)
    x0_hat = MEAN + gain * alpha * (INPUT - MEAN)
    mean = kept * x0_hat + (1 - kept) * INPUT
    return mean, (kept * variance + (kept * gain * sigma) ** 2) ** 0.5


@pytest.mark.parametrize("weight", [0.0, 2.0])
@pytest.mark.parametrize("noise_level", [0.3, 0.7])
@pytest.mark.parametrize("timesteps", [None, 200])
@pytest.mark.parametrize("kind", [Algorithm1, Ddim])
def test_from_an_intermediate_level(kind, timesteps, noise_level, weight):
    settings = {"eta": 1.0} if kind is Ddim else {}
    sampler = kind(Exact(), noise_level=noise_level, timesteps=timesteps or 1000, **settings)
    x = sample(sampler, weight, timesteps=1000)
    mean, std = from_noised_input(weight, noise_level)
    assert float(x.mean()) == pytest.approx(mean, abs=0.012)
    assert float(x.std()) == pytest.approx(std, rel=0.03)


@pytest.mark.parametrize("weight", [0.0, 1.0, 20.0])
def test_guided_ddim_maps_noise_to_the_product(weight):
    """The probability flow of Gaussians is monotone: x_0 is the product's mean + std * x_T."""
    noise = normal_like(torch.empty(SHAPE), torch.Generator().manual_seed(0))
    mean, std = product(weight)
    worst = [
        float((sample(Ddim(Exact(), timesteps=n), weight, 1000) - (mean + std * noise)).abs().max())
        for n in (100, 200, 998)
    ]
    assert worst == sorted(worst, reverse=True)
    assert worst[-1] < 0.02


def test_ddim_with_all_of_its_noise_is_algorithm1():
    settings = {"noise_level": 0.8, "timesteps": 50}
    ancestral = sample(Algorithm1(**settings), 0.0, 1000)
    ddim = sample(Ddim(eta=1.0, **settings), 0.0, 1000)
    torch.testing.assert_close(ddim, ancestral, atol=1e-5, rtol=0)


@pytest.mark.parametrize("guidance", [Reverse(), Mismatched(), Forward()])
@pytest.mark.parametrize("kind", [Algorithm1, Ddim])
def test_guided_numbers_are_pinned(kind, guidance):
    """Three steps by hand from an intermediate level."""
    denoiser = GaussianDenoiser(Schedule.named("cosine", 1000), MEAN, STD)
    ramp = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(1, 1, 2, 3)
    start = torch.tensor([1.0, -1, 0.5, -0.5, 2, 0], dtype=torch.float64).reshape(1, 1, 2, 3)
    sampler = kind(guidance, GaussianSimilarity(6.0), noise_level=0.6, timesteps=3)  # lambda = 1
    x = sampler(denoiser, ramp, initial_noise=start, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    fresh = [normal_like(ramp, generator).flatten().tolist() for _ in range(2)]
    abar = [1.0, *denoiser.schedule.alphas_cumprod.tolist()]  # from the clean image on
    assert sampler.starts(denoiser.schedule) == [596, 397, 198]

    def denoised(value: float, t: int) -> float:
        gain = STD**2 * abar[t + 1] ** 0.5 / (abar[t + 1] * STD**2 + 1 - abar[t + 1])
        return MEAN + gain * (value - abar[t + 1] ** 0.5 * MEAN)

    def gradient(value: float, t: int, y: float) -> float:
        if guidance == Reverse():
            value = denoised(value, t) if t >= 0 else value
        return -2 * (value - (abar[t + 1] ** 0.5 * y if guidance == Forward() else y))

    expected = []
    for i, (y, z) in enumerate(zip(ramp.flatten().tolist(), start.flatten().tolist(), strict=True)):
        x_t = abar[597] ** 0.5 * y + (1 - abar[597]) ** 0.5 * z
        for step, (t, t_next) in enumerate([(596, 397), (397, 198), (198, -1)]):
            a, b = abar[t + 1], abar[t_next + 1]
            x0 = denoised(x_t, t)
            if kind is Ddim:
                eps = (x_t - a**0.5 * x0) / (1 - a) ** 0.5
                eps = eps - (1 - a) ** 0.5 * gradient(x_t, t, y)
                x0 = (x_t - (1 - a) ** 0.5 * eps) / a**0.5
                x0 = min(1, max(-1, x0))
                x_t = b**0.5 * x0 + (1 - b) ** 0.5 * (x_t - a**0.5 * x0) / (1 - a) ** 0.5
                continue
            x0, beta = min(1, max(-1, x0)), 1 - a / b
            mu = (b**0.5 * beta * x0 + (1 - beta) ** 0.5 * (1 - b) * x_t) / (1 - a)
            variance = beta * (1 - b) / (1 - a)
            x_t = mu + variance * gradient(mu, t_next, y)
            x_t += variance**0.5 * fresh[step][i] if t_next >= 0 else 0
        expected.append(x_t)
    torch.testing.assert_close(x.flatten().tolist(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("weight", [0.1, 0.3, 1.0])
def test_reverse_matching_is_nearer_the_product_than_the_others(weight):
    mean, _ = product(weight)
    errors = {
        guidance: abs(float(sample(Algorithm1(guidance), weight).mean()) - mean)
        for guidance in (Reverse("exact"), Mismatched(), Forward())
    }
    assert min(errors, key=errors.get) == Reverse("exact")


@pytest.mark.parametrize("jacobian", ["identity", "exact"])
@pytest.mark.parametrize("weight", [0.0, 1.0, 20.0])
def test_few_step_from_pure_noise_samples_the_product_exactly(weight, jacobian):
    x = sample(FewStep(Reverse(jacobian), noise_level=1.0, steps=200, data_std=STD), weight)
    mean, std = product(weight)
    assert float(x.mean()) == pytest.approx(mean, abs=0.01)
    assert float(x.std()) == pytest.approx(std, rel=0.03)


def explicit_ddim(weight: float, guidance, noise_level: float, steps: int) -> torch.Tensor:
    """DDIM with the guidance added to the score where each step starts."""
    denoiser = GaussianDenoiser(Schedule.named("cosine", 1000), MEAN, STD)
    schedule, similarity = denoiser.schedule, similarity_with_weight(weight)
    x_input = torch.full(SHAPE, INPUT)
    timesteps = few_step_timesteps(schedule, noise_level, steps)
    noise = normal_like(x_input, torch.Generator().manual_seed(0))
    x = schedule.add_noise(x_input, noise, timesteps[0])
    for t, t_next in zip(timesteps, [*timesteps[1:], None], strict=True):
        alpha, sigma = schedule.alpha_sigma(t, x)
        score = -(x - alpha * denoiser(x, t)) / sigma**2
        score = score + guidance.gradient(denoiser, similarity, x, x_input, t)
        x0 = (x + sigma**2 * score) / alpha
        x = x0 if t_next is None else schedule.add_noise(x0, -sigma * score, t_next)
    return x


@pytest.mark.parametrize("weight", [1.0, 10.0])
@pytest.mark.parametrize("guidance", [Mismatched(), Forward()])
def test_few_step_solves_the_guided_probability_flow(guidance, weight):
    expected = explicit_ddim(weight, guidance, noise_level=0.6, steps=590)
    shift = abs(float(expected.mean() - explicit_ddim(0, guidance, 0.6, 590).mean()))
    assert shift > 0.05
    for steps, tolerance in ((300, 0.01), (8, 0.05), (3, 0.2)):
        x = sample(FewStep(guidance, noise_level=0.6, steps=steps), weight, 1000)
        assert float(x.mean()) == pytest.approx(float(expected.mean()), abs=tolerance * shift)


def test_few_step_edits_more_from_a_higher_noise_level():
    low = sample(FewStep(noise_level=0.2, steps=20), 0)
    high = sample(FewStep(noise_level=0.7, steps=20), 0)
    assert abs(float(low.mean()) - INPUT) < 0.5 * abs(float(high.mean()) - INPUT)
    assert abs(float(high.mean()) - MEAN) < 0.5 * abs(INPUT - MEAN)


GUIDANCES = {
    "reverse-exact": Reverse("exact"),
    "reverse-identity": Reverse("identity"),
    "mismatched": Mismatched(),
    "forward": Forward(),
}
SAMPLERS = {
    f"{kind.__name__}-{name}": kind(guidance)
    for kind in (Algorithm1, Ddim, FewStep)
    for name, guidance in GUIDANCES.items()
}
# Scales that Algorithm 1, whose steps are explicit, follows without overshooting.
KERNELS = {
    "gaussian": lambda strength: GaussianSimilarity(60.0 * strength),
    "l1": lambda strength: L1Similarity(40.0 * strength),
    "changed_fraction": lambda strength: ChangedFractionSimilarity(
        150.0 * strength, width=(2.0, 0.4), steepness=(1.0, 10.0)
    ),
}


def edit(sampler: Sampler, similarity, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A small picture and its edits."""
    denoiser = GaussianDenoiser(Schedule.named("cosine", 60), MEAN, STD)
    x_input = torch.linspace(-0.9, 0.1, 3 * 8 * 8).reshape(1, 3, 8, 8).repeat(4, 1, 1, 1)
    sampler = replace(sampler, similarity=similarity)
    return x_input, sampler(denoiser, x_input, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_edits_are_nearer_the_input_the_higher_the_scale(sampler, kernel):
    distances = []
    for strength in (0.0, 0.3, 1.0, 3.0):
        x_input, x = edit(SAMPLERS[sampler], KERNELS[kernel](strength))
        distances.append(float((x - x_input).abs().mean()))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.95 * distances[0]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name.startswith("FewStep")])
def test_few_step_is_stable_for_every_scale(sampler, kernel):
    _, x = edit(SAMPLERS[sampler], KERNELS[kernel](1e9))
    assert torch.isfinite(x).all()
    assert float(x.abs().max()) <= 1


@pytest.mark.parametrize("kernel", ["gaussian", "l1"])
@pytest.mark.parametrize("guidance", [Reverse(), Mismatched(), Forward()])
def test_few_step_gives_the_input_back_at_last(guidance, kernel):
    x_input, x = edit(FewStep(guidance), KERNELS[kernel](1e9))
    torch.testing.assert_close(x, x_input, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_seeded_runs_are_bit_identical(sampler, kernel):
    first, second, other = (
        edit(SAMPLERS[sampler], KERNELS[kernel](1.0), seed)[1] for seed in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("guidance", [Reverse(), Mismatched(), Forward()])
def test_kernels_change_over_the_diffusion_time(guidance):
    """The last step's kernel is the sharpest; a fixed kernel equals one with equal ends."""
    asked = []

    class Recording(GaussianSimilarity):
        def at(self, time: float) -> GaussianSimilarity:
            asked.append(time)
            return self

    edit(FewStep(guidance, noise_level=1.0, steps=3), Recording(1.0))
    assert asked == sorted(asked, reverse=True)
    assert len(asked) == 3
    assert asked[-1] == 0
    asked.clear()
    edit(Algorithm1(Reverse("exact")), Recording(1.0))
    assert asked == pytest.approx([i / 59 for i in range(59, -1, -1)])


def test_diffusion_time_of_a_schedule_of_one_step():
    assert diffusion_time(Schedule.named("cosine", 1), -1) == 0


def test_callback_sees_every_step():
    steps = []
    x = sample(FewStep(noise_level=0.6, steps=4), 1.0, callback=steps.append)
    assert [step.index for step in steps] == [0, 1, 2, 3]
    assert {step.count for step in steps} == {4}
    assert all(torch.equal(b.before, a.x) for a, b in pairwise(steps))
    assert [step.timestep for step in steps] == sorted((s.timestep for s in steps), reverse=True)
    assert torch.equal(steps[-1].x, x)


def test_few_step_timesteps():
    schedule = Schedule.named("cosine", 1000)
    timesteps = few_step_timesteps(schedule, 0.6, 3)
    assert timesteps == [schedule.timestep_at(level) for level in (0.6, 0.4, 0.2)]
    with pytest.raises(ValueError, match="at least 1"):
        few_step_timesteps(schedule, 0.6, 0)


@pytest.mark.parametrize("guidance", [Reverse(), Mismatched(), Forward()])
def test_few_step_numbers_are_pinned(guidance):
    """A full loop on a tiny deterministic denoiser: a change of the sampler shows here."""
    denoiser = GaussianDenoiser(Schedule.named("cosine", 1000), MEAN, STD)
    ramp = torch.linspace(-1, 1, 6).reshape(1, 1, 2, 3)
    noise = torch.tensor([1.0, -1, 0.5, -0.5, 2, 0]).reshape(1, 1, 2, 3)
    kernel = GaussianSimilarity(6.0)  # lambda = 1
    x = FewStep(guidance, kernel, noise_level=0.6, steps=3, data_std=STD)(
        denoiser, ramp, initial_noise=noise
    )
    expected = []
    for value, z in zip(ramp.flatten().tolist(), noise.flatten().tolist(), strict=True):
        abar = float(denoiser.schedule.alphas_cumprod[596])
        x_t = abar**0.5 * value + (1 - abar) ** 0.5 * z
        for t, t_next in [(596, 394), (394, 193), (193, None)]:
            abar = float(denoiser.schedule.alphas_cumprod[t])
            nxt = 1.0 if t_next is None else float(denoiser.schedule.alphas_cumprod[t_next])
            gain = STD**2 * abar**0.5 / (abar * STD**2 + 1 - abar)
            x0 = min(1, max(-1, MEAN + gain * (x_t - abar**0.5 * MEAN)))
            if guidance == Reverse():
                v = 1 / (1 / STD**2 + abar / (1 - abar))
                x0 = (x0 + 2 * v * value) / (1 + 2 * v)
            eps = (x_t - abar**0.5 * x0) / (1 - abar) ** 0.5
            sigma, sigma_next = (1 - abar) ** 0.5, (1 - nxt) ** 0.5
            x_t = nxt**0.5 * x0 + sigma_next * eps
            if guidance != Reverse():
                kappa = sigma * ((nxt / abar) ** 0.5 * sigma - sigma_next)
                target = value * (nxt**0.5 if guidance == Forward() else 1)
                x_t = (x_t + 2 * kappa * target) / (1 + 2 * kappa)
        expected.append(x_t)
    assert few_step_timesteps(denoiser.schedule, 0.6, 3) == [596, 394, 193]
    torch.testing.assert_close(x.flatten(), torch.tensor(expected), atol=1e-5, rtol=1e-5)
