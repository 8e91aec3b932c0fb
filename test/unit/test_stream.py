"""Stream batching against the sampler that takes one image after the other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.synthesis.denoisers.base import Denoiser
from anomaly_detector_ros.synthesis.denoisers.loading import load_denoiser
from anomaly_detector_ros.synthesis.denoisers.lucidrains import LucidrainsConfig, LucidrainsUnet
from anomaly_detector_ros.synthesis.denoisers.onnx_export import export_denoiser
from anomaly_detector_ros.synthesis.denoisers.unet import UnetDenoiser
from anomaly_detector_ros.synthesis.editing import make_sampler
from anomaly_detector_ros.synthesis.gaussian import GaussianDenoiser
from anomaly_detector_ros.synthesis.schedule import Schedule, Timesteps
from anomaly_detector_ros.synthesis.stream import StreamEditor

SIZE = (16, 24)
EDITS = 2
SETTINGS = {
    "unguided": {},
    "reverse": {"guidance_scale": 500.0},
    "mismatched": {"guidance": "mismatched", "guidance_scale": 500.0},
    "forward": {"guidance": "forward", "guidance_scale": 500.0},
    "l1": {"similarity": "l1", "guidance_scale": 500.0},
    # Its kernel changes over the diffusion time: each image is at another one.
    "changed_fraction": {"similarity": "changed_fraction", "guidance_scale": 50.0},
}


def pictures(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.rand(1, 3, *SIZE, generator=generator) * 2 - 1 for _ in range(count)]


def noise() -> Tensor:
    return torch.randn(EDITS, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def lucidrains_denoiser() -> UnetDenoiser:
    torch.manual_seed(0)
    levels = {"full_attn": (False, True), "attn_heads": (2, 2), "attn_dim_head": (8, 8)}
    unet = LucidrainsUnet(LucidrainsConfig(8, 8, (1, 2), **levels)).eval()
    return UnetDenoiser(unet.requires_grad_(False), Schedule.named("sigmoid", 50))


@pytest.fixture(params=["diffusers", "lucidrains", "onnx", "gaussian"])
def denoiser(request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path) -> Denoiser:
    if request.param == "diffusers":
        return load_denoiser(tiny_model)
    if request.param == "lucidrains":
        return lucidrains_denoiser()
    if request.param == "gaussian":
        return GaussianDenoiser(Schedule.named("cosine", 100), 0.3, 0.4)
    export_denoiser(tiny_model, tmp_path, size=SIZE)
    return load_denoiser(tmp_path)


def test_every_image_of_a_batch_at_its_own_timestep(denoiser: Denoiser) -> None:
    x = torch.cat(pictures(3))
    timesteps = torch.tensor([0, 17, denoiser.schedule.num_train_timesteps - 1])
    with torch.no_grad():
        together = denoiser(x, timesteps)
        alone = [denoiser(x[i : i + 1], int(t)) for i, t in enumerate(timesteps)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[1:2], denoiser(x[1:2], 0), atol=1e-3)


def streamed(editor: StreamEditor, images: list[Tensor]) -> list[Tensor]:
    stepped = [editor.step(image) for image in images]
    assert [edit is None for edit in stepped] == [i < editor.delay for i in range(len(images))]
    return [edit for edit in stepped if edit is not None] + editor.flush()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_stream_has_the_edits_of_each_image_alone(tiny_model: Path, settings: dict) -> None:
    denoiser = load_denoiser(tiny_model)
    sampler = {"name": "few_step", "steps": 3, "noise_level": 0.8, **settings}
    editor = StreamEditor.from_settings(denoiser, sampler, noise())
    images = pictures(5)
    edits = streamed(editor, images)
    assert len(edits) == len(images)
    for image, edit in zip(images, edits, strict=True):
        alone = make_sampler(sampler)(
            denoiser, image.expand(EDITS, -1, -1, -1), initial_noise=noise()
        )
        torch.testing.assert_close(edit, alone, atol=2e-5, rtol=0)
        assert not torch.allclose(edit, edits[0], atol=1e-3) or image is images[0]


def test_a_stream_with_every_network(denoiser: Denoiser) -> None:
    sampler = {"name": "few_step", "steps": 2, "guidance_scale": 100.0}
    images = pictures(3)
    for image, edit in zip(
        images,
        streamed(StreamEditor.from_settings(denoiser, sampler, noise()), images),
        strict=True,
    ):
        repeated = image.expand(EDITS, -1, -1, -1)
        alone = make_sampler(sampler)(denoiser, repeated, initial_noise=noise())
        torch.testing.assert_close(edit, alone, atol=2e-5, rtol=0)


class Recording:
    """A denoiser that notes the timesteps of every pass."""

    def __init__(self) -> None:
        self.inner = GaussianDenoiser(Schedule.named("cosine", 1000), 0.3, 0.4)
        self.schedule = self.inner.schedule
        self.passes: list[list[int]] = []

    def __call__(self, x: Tensor, t: Timesteps) -> Tensor:
        self.passes.append(t.tolist())
        return self.inner(x, t)


def test_one_pass_a_step_for_all_images_on_their_way() -> None:
    denoiser = Recording()
    settings = {"name": "few_step", "steps": 3, "noise_level": 0.6}
    editor = StreamEditor.from_settings(denoiser, settings, noise()[:1])
    images = pictures(4)
    assert len(streamed(editor, images)) == 4
    first, second, third = editor.timesteps
    assert denoiser.passes == [
        [first],
        [second, first],
        [third, second, first],
        [third, second, first],
        [third, second],
        [third],
    ]
    # And it begins anew.
    assert editor.step(images[0]) is None
    assert editor.delay == 2
    assert len(editor.flush()) == 1
    assert editor.flush() == []


def test_fewer_images_than_steps(tiny_model: Path) -> None:
    editor = StreamEditor.from_settings(
        load_denoiser(tiny_model), {"name": "few_step", "steps": 4}, noise()
    )
    assert editor.flush() == []
    assert editor.step(pictures(1)[0]) is None
    assert [tuple(edit.shape) for edit in editor.flush()] == [(EDITS, 3, *SIZE)]


def test_a_single_step_comes_at_once(tiny_model: Path) -> None:
    editor = StreamEditor.from_settings(
        load_denoiser(tiny_model), {"name": "few_step", "steps": 1}, noise()
    )
    assert editor.delay == 0
    assert editor.step(pictures(1)[0]) is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "algorithm1"}, "a stream has no sampler 'algorithm1': set 'name: few_step'"),
        ({"name": "few_step", "jacobian": "exact"}, "set the sampler's 'jacobian: identity'"),
        ({"name": "few_step", "steps": 0}, "'steps' is 0"),
    ],
)
def test_what_no_stream_can_have(tiny_model: Path, settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        StreamEditor.from_settings(load_denoiser(tiny_model), settings, noise())
