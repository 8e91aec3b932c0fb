"""Edits that begin at another noise level in every place."""

from dataclasses import dataclass

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor

from anomaly_detector_ros.synthesis.denoisers.base import OneByOneDenoiser
from anomaly_detector_ros.synthesis.denoisers.inpainting import InpaintingUnet, inpainting_input
from anomaly_detector_ros.synthesis.denoisers.local import LocalDenoiser
from anomaly_detector_ros.synthesis.denoisers.unet import UnetDenoiser
from anomaly_detector_ros.synthesis.editor import Editor, EditSettings
from anomaly_detector_ros.synthesis.gaussian import GaussianDenoiser
from anomaly_detector_ros.synthesis.samplers.few_step import FewStep
from anomaly_detector_ros.synthesis.schedule import Schedule
from anomaly_detector_ros.synthesis.similarity.norms import GaussianSimilarity

UNGUIDED = GaussianSimilarity(0.0)
SCHEDULE = Schedule.named("cosine", 1000)
DENOISER = GaussianDenoiser(SCHEDULE, 0.3, 0.2)
INPUTS = torch.linspace(-0.9, 0.9, 2 * 3 * 40 * 48).reshape(2, 3, 40, 48)
CPU = torch.device("cpu")


def editor(steps: int = 4, edits: int = 2) -> Editor:
    sampler = FewStep(similarity=UNGUIDED, noise_level=1.0, steps=steps)
    return Editor(EditSettings(sampler, num_edits=edits), (40, 48), CPU)


def test_strength_one_is_the_plain_edit_and_zero_none() -> None:
    _, plain = editor().edit(DENOISER, INPUTS)
    _, full = editor().edit(DENOISER, INPUTS, strength=torch.ones(2, 5, 6))
    originals, none = editor().edit(DENOISER, INPUTS, strength=torch.zeros(2, 5, 6))
    assert torch.allclose(full, plain, atol=1e-6)
    assert torch.equal(originals, INPUTS)
    assert torch.equal(none, INPUTS[:, None].expand_as(none))


def test_what_is_not_edited_keeps_its_pixels() -> None:
    strength = torch.zeros(2, 5, 6)
    strength[1, :, 3:] = 1  # the right half of the second image
    _, edits = editor().edit(DENOISER, INPUTS, strength=strength)
    assert torch.equal(edits[0], INPUTS[0].expand_as(edits[0]))
    kept, faded, edited = edits[1][..., :16], edits[1][..., 16:32], edits[1][..., 32:]
    assert torch.equal(kept, INPUTS[1, ..., :16].expand_as(kept))
    _, plain = editor().edit(DENOISER, INPUTS)
    assert torch.allclose(edited, plain[1][..., 32:], atol=1e-6)
    assert not torch.allclose(faded, INPUTS[1, ..., 16:32].expand_as(faded), atol=1e-3)


def test_a_place_joins_when_the_noise_has_fallen_to_its_strength() -> None:
    seen: list[tuple[float, Tensor]] = []

    class Seen(LocalDenoiser):
        def __call__(self, x: Tensor, t: int) -> Tensor:
            seen.append((SCHEDULE.noise_fraction(t), self.edited.clone()))
            return super().__call__(x, t)

    strength = torch.tensor([0.1, 0.3, 0.6, 1.0]).reshape(1, 1, 1, 4)
    x = torch.full((1, 3, 1, 4), 0.9)
    local = Seen(DENOISER, x, strength)
    FewStep(similarity=UNGUIDED, noise_level=1.0, steps=4)(local, x)
    assert [round(level, 2) for level, _ in seen] == [1.0, 0.75, 0.5, 0.25]
    begun = [each.flatten().tolist() for _, each in seen[1:]] + [local.edited.flatten().tolist()]
    assert begun == [
        [False, False, False, True],
        [False, False, False, True],
        [False, False, True, True],
        [False, True, True, True],
    ]


def test_a_network_is_not_asked_before_any_place_is_edited() -> None:
    asked: list[float] = []

    class Counting(GaussianDenoiser):
        def __call__(self, x: Tensor, t: int) -> Tensor:
            asked.append(round(SCHEDULE.noise_fraction(t), 2))
            return super().__call__(x, t)

    counting, x = Counting(SCHEDULE, 0.3, 0.2), torch.full((2, 3, 1, 4), 0.9)
    sampler = FewStep(similarity=UNGUIDED, noise_level=1.0, steps=4)
    strength = torch.zeros(2, 1, 1, 4)
    assert torch.allclose(sampler(LocalDenoiser(counting, x, strength), x), x, atol=1e-6)
    assert asked == []
    strength[1, ..., 2] = 0.6
    sampler(LocalDenoiser(counting, x, strength), x)
    assert asked == [0.5, 0.25]


@dataclass
class Pair:
    """Two standard normal places that correlate; the first is told from the second."""

    schedule: Schedule
    correlation: float

    def fill_in(self, x: Tensor, t: int, known: Tensor, hidden: Tensor) -> Tensor:
        mean = self.correlation * known.flip(3)
        return GaussianDenoiser(self.schedule, mean, (1 - self.correlation**2) ** 0.5)(x, t)

    def __call__(self, x: Tensor, t: int) -> Tensor:
        raise AssertionError("a denoiser that fills in is told what is known")


def test_a_hidden_place_follows_its_conditional_distribution() -> None:
    """The ODE turns noise n into m + s n, the conditional mean and deviation given the other."""
    pair = Pair(SCHEDULE, 0.8)
    x = torch.tensor([[0.4, 0.7], [-0.2, -0.5]]).reshape(2, 1, 1, 2)
    noise = torch.tensor([[1.2, 0.1], [-0.6, 0.3]]).reshape(2, 1, 1, 2)
    strength = torch.tensor([1.0, 0.0]).expand(2, 1, 1, 2)
    sampler = FewStep(similarity=UNGUIDED, noise_level=1.0, steps=400, clip=False)
    found = sampler(LocalDenoiser(pair, x, strength), x, initial_noise=noise)
    assert torch.equal(found[..., 1], x[..., 1])
    expected = 0.8 * x[..., 1] + 0.6 * noise[..., 0]
    assert torch.allclose(found[..., 0], expected, atol=0.01)


def test_a_network_that_fills_in_is_told_what_is_known() -> None:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=7,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    ).eval()
    denoiser = UnetDenoiser(InpaintingUnet(unet), SCHEDULE)
    x, known, hidden = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8), torch.zeros(2, 1, 8, 8)
    hidden[..., :4] = 1
    with torch.no_grad():
        told = denoiser.fill_in(x, 700, known, hidden)
        output = unet(torch.cat([x, hidden, known * (1 - hidden)], 1), 700).sample
        assert torch.allclose(told, SCHEDULE.predict_x0(x, output, 700), atol=1e-5)
        assert torch.equal(told, denoiser.fill_in(x, 700, known + 9 * hidden, hidden))
        assert not torch.allclose(told, denoiser(x, 700), atol=1e-3)
        everything = denoiser.fill_in(x, 700, known, torch.ones_like(hidden))
        assert torch.allclose(everything, denoiser(x, 700), atol=1e-5)
    assert inpainting_input(x, known, hidden).shape == (2, 7, 8, 8)


def test_one_by_one_a_network_is_told_too() -> None:
    pair = Pair(SCHEDULE, 0.8)
    x, known = torch.randn(3, 1, 1, 2), torch.randn(3, 1, 1, 2)
    hidden = torch.tensor([1.0, 0.0]).expand(3, 1, 1, 2)
    found = OneByOneDenoiser(pair).fill_in(x, 500, known, hidden)
    assert torch.allclose(found, pair.fill_in(x, 500, known, hidden))


def test_a_plain_network_does_not_look() -> None:
    strength = torch.ones(1, 1, 4, 4)
    x = torch.randn(1, 3, 4, 4)
    found = LocalDenoiser(DENOISER, torch.zeros_like(x), strength)(x, 500)
    assert torch.equal(found, DENOISER(x, 500))


@pytest.mark.parametrize("t", [0, 1, 500, 998, 999])
def test_noise_fraction_and_timestep_are_inverse(t: int) -> None:
    assert SCHEDULE.timestep_at(SCHEDULE.noise_fraction(t)) == t
