"""The plug-ins of examples/: each runs in a detector, and does by hand or in closed form."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.segmentation.base import SEGMENTERS, SegmenterSettings
from anomaly_detector_ros.synthesis.editor import read_edit_settings
from anomaly_detector_ros.synthesis.gaussian import GaussianDenoiser
from anomaly_detector_ros.synthesis.guidance import GUIDANCES
from anomaly_detector_ros.synthesis.samplers import SAMPLERS
from anomaly_detector_ros.synthesis.schedule import Schedule
from anomaly_detector_ros.synthesis.similarity import SIMILARITIES
from anomaly_detector_ros.synthesis.similarity.norms import GaussianSimilarity, L1Similarity

PLUGINS = Path(__file__).resolve().parents[2] / "examples" / "plugins"
MEAN, STD = 0.3, 0.4
DENOISER = GaussianDenoiser(Schedule.named("cosine", 1000), MEAN, STD)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests list the parts that this package has."""
    for registry in (SAMPLERS, GUIDANCES, SIMILARITIES, SEGMENTERS):
        registry.names()
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    for name in list(sys.modules):
        if name.startswith("anomaly_detector_part_"):
            monkeypatch.delitem(sys.modules, name)

    @SEGMENTERS.register("columns")
    @dataclass(frozen=True, kw_only=True)
    class Columns(SegmenterSettings):
        """No segment on the left, then 1 and 2, a third each."""

        needs_map = False

        def build(self, loader: object) -> Columns:
            return self

        def segment(self, image: np.ndarray, anomaly_map: np.ndarray) -> np.ndarray:
            width = image.shape[1]
            return np.repeat(np.arange(width)[None] * 3 // width, len(image), 0).astype(np.int32)


def plugin(name: str) -> str:
    file, _, own = name.partition(":")
    return f"{PLUGINS / file}.py:{own}"


COLUMNS = {"segmenter": {"name": "columns"}}
EXAMPLES: dict[str, dict[str, Any]] = {
    "ddad": {"name": "few_step", "steps": 3, "guidance": plugin("ddad:ddad"), "weight": 2.0},
    "langevin": {"name": plugin("langevin:langevin"), "corrections": 1, "timesteps": 3},
    "segment_constraint": {
        "name": plugin("segment_constraint:segments_in_or_out"), "timesteps": 3, **COLUMNS,
    },
    "segment_prior": {
        "name": "ddim", "timesteps": 3, "similarity": plugin("segment_prior:segment_prior"),
        "guidance_scale": 10.0, **COLUMNS,
    },
    "markov_prior": {
        "name": "algorithm1", "timesteps": 3, "similarity": plugin("markov_prior:markov_prior"),
        "guidance_scale": 10.0,
    },
    "kernel_sum": {
        "name": "algorithm1", "timesteps": 3, "similarity": plugin("kernel_sum:sum"),
        "kernels": [{"name": "gaussian", "guidance_scale": {"first": 1, "last": 100}}],
    },
}  # fmt: skip


def test_every_plugin_is_tested() -> None:
    assert {file.stem for file in PLUGINS.glob("*.py")} == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_profile_runs_it(name: str, light_profile: str) -> None:
    """Its edits are others than those of the same sampler without it."""
    image = np.random.default_rng(0).integers(0, 255, (16, 24, 3), np.uint8)
    plain = {key: v for key, v in EXAMPLES[name].items() if key in ("timesteps", "steps")}
    kind = EXAMPLES[name]["name"]
    plain["name"] = kind if kind in SAMPLERS.names() else "algorithm1"
    edited = [
        Detector.from_profile(
            light_profile, device="cpu", offline=True, overrides={"sampler": sampler}
        ).detect(image).edited
        for sampler in (EXAMPLES[name], plain)
    ]  # fmt: skip
    assert not np.array_equal(*edited)


def test_kernels_inside_a_sum_are_named_relative_to_the_profile(
    light_profile: str, tmp_path: Path
) -> None:
    for name in ("kernel_sum", "markov_prior"):
        (tmp_path / f"{name}.py").write_text((PLUGINS / f"{name}.py").read_text())
    (own,) = yaml.safe_load(Path(light_profile).read_text()).values()
    own["sampler"] = {
        "name": "ddim", "timesteps": 2, "similarity": "kernel_sum.py:sum",
        "kernels": [{"name": "markov_prior.py:markov_prior", "guidance_scale": 2.0}],
    }  # fmt: skip
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"mine": own}))
    detector = Detector.from_profile(str(tmp_path / "mine.yaml"), device="cpu", offline=True)
    assert detector.detect(np.full((16, 24, 3), 90, np.uint8)).edited.shape == (16, 24, 3)


def kernel(name: str, **settings: Any) -> Any:
    return SIMILARITIES.read({"name": plugin(name), **settings})


def pictures(seed: int = 0, size: tuple[int, int] = (2, 6)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.rand((2, 1, 3, *size), generator=generator, dtype=torch.float64) * 2 - 1
    return x, y


def test_numbers_of_a_sum_follow_their_schedules() -> None:
    x, y = pictures()
    total = kernel(
        "kernel_sum:sum",
        kernels=[
            {"name": "gaussian", "guidance_scale": {"first": 1, "last": 100, "schedule": "log"}},
            {"name": "gaussian", "guidance_scale": {"first": 2, "last": 6}},
            {"name": "l1", "guidance_scale": {"first": 5, "last": 3, "schedule": "fixed"}},
        ],
    )
    for time, squared in ((1, 1 + 2), (0.5, 10 + 4), (0.25, 100**0.75 + 5), (0, 100 + 6)):
        expected = GaussianSimilarity(squared).log_prob(x, y) + L1Similarity(3).log_prob(x, y)
        torch.testing.assert_close(total.at(time).log_prob(x, y), expected, atol=1e-12, rtol=0)
        gradient = GaussianSimilarity(squared).grad(x, y) + L1Similarity(3).grad(x, y)
        torch.testing.assert_close(total.at(time).grad(x, y), gradient, atol=1e-12, rtol=0)
    with pytest.raises(UserError, match="schedule is 'cubic'"):
        kernel(
            "kernel_sum:sum",
            kernels=[
                {"name": "l1", "guidance_scale": {"first": 1, "last": 2, "schedule": "cubic"}}
            ],
        ).log_prob(x, y)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def same(x: torch.Tensor, y: torch.Tensor, row: int, column: int) -> list[float]:
    """How much each channel of a pixel is as before; width 0.4, steepness 10."""
    differences = (x - y)[0, :, row, column].tolist()
    return [sigmoid(10 * (0.2 + d)) * sigmoid(10 * (0.2 - d)) for d in differences]


def test_markov_prior_by_hand() -> None:
    sharp = kernel("markov_prior:markov_prior", guidance_scale=2.0, steepness=1e3)
    y = torch.zeros(1, 3, 2, 2, dtype=torch.float64)
    x = y + torch.tensor([[0.0, 1], [1, 1]])
    # One of four pixels stayed; of two pairs beside each other one agrees, and so above.
    assert float(sharp.log_prob(x, y)) == pytest.approx(2 * (0.25 + 0.47 * (0.5 + 0.5)))
    x, y = pictures(size=(2, 3))
    y = x + 0.15 * y
    u = [[math.prod(same(x, y, row, column)) for column in range(3)] for row in range(2)]

    def agree(a: float, b: float) -> float:
        return a * b + (1 - a) * (1 - b)

    beside = [agree(u[i][j], u[i][j + 1]) for i in range(2) for j in range(2)]
    above = [agree(u[0][j], u[1][j]) for j in range(3)]
    expected = 3 * (sum(map(sum, u)) / 6 + 0.47 * (sum(beside) / 4 + sum(above) / 3))
    soft = kernel("markov_prior:markov_prior", guidance_scale=3.0)
    assert float(soft.log_prob(x, y)) == pytest.approx(expected, abs=1e-12)


def test_segment_prior_by_hand() -> None:
    x, y = pictures()
    y = ((y + 1) * 127.5).round() / 127.5 - 1
    x = y + 0.3 * x
    logs = []
    for segment in (1, 2):
        inside = outside = 0.0
        for row in range(2):
            for column in (2 * segment, 2 * segment + 1):
                inside += sum(math.log(value) for value in same(x, y, row, column))
                differences = (x - y)[0, :, row, column].tolist()
                odds = [sigmoid(10 * (d - 0.2)) + sigmoid(10 * (-d - 0.2)) for d in differences]
                outside += math.log(sum(odds))
        logs.append(math.log(math.exp(inside / 12) + math.exp(outside / 12)))
    prior = kernel("segment_prior:segment_prior", guidance_scale=4.0, **COLUMNS)
    assert float(prior.log_prob(x, y)) == pytest.approx(4 * sum(logs) / 2, abs=1e-12)


def test_segment_constraint_by_hand() -> None:
    settings = {"name": plugin("segment_constraint:segments_in_or_out"), "window": [2.0, 0.2]}
    sampler: Any = read_edit_settings({**settings, **COLUMNS}).sampler
    y = torch.full((1, 3, 2, 6), 0.5)
    x = y.clone()
    x[..., :2] = 0.9  # no segment
    x[..., 2:4] = torch.tensor([[0.45, 0.55], [0.55, 0.9]])  # three of four within 0.1
    x[..., 4:] = torch.tensor([[0.45, 0.9], [0.9, 0.1]])  # one of four
    x[:, 0, 0, 4] = 0.52
    found = sampler.correct(DENOISER, None, x, y, -1, None)
    expected = x.clone()
    expected[..., 1, 3] = 0.6
    expected[..., 0, 4] = torch.tensor([0.6, 0.4, 0.4])[None]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    # Twice as wide as the pixels' range: all are inside, and at half time 1.1 is.
    assert torch.equal(sampler.correct(DENOISER, None, x, y, 998, None), x)
    halfway = sampler.correct(DENOISER, None, torch.full_like(x, -1.0), y, 499, None)
    assert float(halfway[0, 0, 0, 5]) == -1.0
    halfway = sampler.correct(DENOISER, None, torch.full_like(x, 0.0), y, 499, None)
    assert float(halfway[0, 0, 0, 5]) == 0.0


def test_ddad_by_hand() -> None:
    """Three DDIM steps with its equations as they stand in the paper."""
    settings = {"name": "few_step", "steps": 3, "noise_level": 0.6, "clip": False, "weight": 1.5}
    sampler = read_edit_settings({**settings, "guidance": plugin("ddad:ddad")}).sampler
    y, z = pictures()
    found = sampler(DENOISER, y, initial_noise=z)
    abar = DENOISER.schedule.alphas_cumprod.tolist()
    x = abar[596] ** 0.5 * y + (1 - abar[596]) ** 0.5 * z
    for t, after in ((596, abar[394]), (394, abar[193]), (193, 1.0)):
        signal, noise = abar[t] ** 0.5, (1 - abar[t]) ** 0.5
        eps = (x - signal * DENOISER(x, t)) / noise
        y_t = signal * y + noise * eps
        guided = eps - 1.5 * noise * (y_t - x)
        x0 = (x - noise * guided) / signal
        x = after**0.5 * x0 + (1 - after) ** 0.5 * guided
    torch.testing.assert_close(found, x, atol=1e-12, rtol=0)
    guidance = sampler.guidance
    gradient = guidance.gradient(DENOISER, None, x, y, 394)
    torch.testing.assert_close(gradient, 1.5 * abar[394] ** 0.5 * (y - DENOISER(x, 394)))


@pytest.mark.parametrize("t", [100, 600])
def test_langevin_steps_keep_the_law_of_the_noised_data(t: int) -> None:
    """x_t ~ N(sqrt(abar) m, 1 / p); steps of length b settle at variance 1 / (p (1 - b p / 2))."""
    settings = {"name": plugin("langevin:langevin"), "corrections": 3000}
    sampler: Any = read_edit_settings(settings).sampler
    abar = float(DENOISER.schedule.alphas_cumprod[t])
    length = float(DENOISER.schedule.betas[t])
    precision = 1 / (abar * STD**2 + 1 - abar)
    x = torch.full((1, 3, 32, 32), 2.0, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    found = sampler.correct(DENOISER, GaussianSimilarity(0), x, x, t, generator)
    variance = 1 / (precision * (1 - length * precision / 2))
    kept = (1 - length * precision) ** 3000
    mean = abar**0.5 * MEAN + kept * (2.0 - abar**0.5 * MEAN)
    assert float(found.mean()) == pytest.approx(mean, abs=4 * (variance / 3072) ** 0.5)
    spread = variance * (1 - kept**2)
    assert float(found.var()) == pytest.approx(spread, rel=0.06)
    assert torch.equal(sampler.correct(DENOISER, GaussianSimilarity(0), x, x, -1, generator), x)
