"""Images edited as pixels and as an autoencoder's latents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from support.tiny import write_profile
from torch import Tensor

from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.synthesis.autoencoder import Autoencoder
from anomaly_detector_ros.synthesis.denoisers.inpainting import InpaintingUnet
from anomaly_detector_ros.synthesis.denoisers.loading import load_denoiser
from anomaly_detector_ros.synthesis.denoisers.onnx_export import export_denoiser
from anomaly_detector_ros.synthesis.editor import Editor, EditSettings
from anomaly_detector_ros.synthesis.gaussian import GaussianDenoiser
from anomaly_detector_ros.synthesis.samplers.few_step import FewStep
from anomaly_detector_ros.synthesis.schedule import Schedule
from anomaly_detector_ros.synthesis.spaces import PIXELS, LatentSpace, space_of

CPU = torch.device("cpu")
SIZE = (24, 40)  # latents of 3 x 5, odd on purpose
TINY = {"latent_channels": 4, "channels": (8, 8, 8), "decoder_blocks": (1, 1, 1)}


def tiny_unet() -> UNet2DModel:
    return UNet2DModel(
        sample_size=(4, 8),
        in_channels=9,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )


@pytest.fixture(scope="module")
def latent_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with a tiny autoencoder and a tiny inpainting U-Net of random weights."""
    directory = tmp_path_factory.mktemp("latent") / "model"
    torch.manual_seed(0)
    tiny_unet().save_pretrained(directory / "unet")
    Autoencoder(**TINY).save_pretrained(directory / "vae")
    Schedule.named("cosine").to_diffusers().save_pretrained(directory / "scheduler")
    return directory


@pytest.fixture
def images() -> Tensor:
    return torch.rand((2, 3, *SIZE), generator=torch.Generator().manual_seed(1)) * 2 - 1


class ScaledSpace:
    """Images times 3, outside of [-1, 1]."""

    bounded = False

    def encode(self, images: Tensor) -> Tensor:
        return 3 * images

    def decode(self, points: Tensor) -> Tensor:
        return points / 3


def test_a_model_without_autoencoder_works_on_pixels(tiny_model: Path) -> None:
    assert space_of(load_denoiser(tiny_model)) is PIXELS


def test_latents_and_back(latent_model: Path, images: Tensor) -> None:
    space = space_of(load_denoiser(latent_model))
    assert isinstance(space, LatentSpace)
    latents = space.encode(images)
    assert latents.shape == (2, 4, 3, 5)
    assert space.decode(latents).shape == images.shape
    network = Autoencoder.from_pretrained(latent_model, subfolder="vae").eval()
    assert torch.allclose(space.decode(latents), network(images), atol=1e-5)


def test_originals_pass_the_autoencoder_like_their_edits(
    latent_model: Path, images: Tensor
) -> None:
    denoiser = load_denoiser(latent_model)
    editor = Editor(EditSettings(FewStep(steps=2), num_edits=3), SIZE, CPU)
    originals, edits = editor.edit(denoiser, images)
    assert edits.shape == (2, 3, 3, *SIZE)
    space = space_of(denoiser)
    assert torch.equal(originals, space.decode(space.encode(images)).clamp(-1, 1))
    assert edits.abs().max() <= 1
    again = editor.edit(denoiser, images)[1]
    assert torch.equal(edits, again)


@pytest.mark.parametrize(("compared_with", "decoded"), [("image", 1), ("model_input", 2)])
def test_originals_are_decoded_only_for_who_looks_at_them(
    latent_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compared_with: str,
    decoded: int,
) -> None:
    file = write_profile(
        tmp_path / "latent.yaml",
        latent_model,
        denoiser={"model": str(latent_model), "size": list(SIZE), "dtype": "float32"},
        distance={"name": "cosine", "compared_with": compared_with},
    )
    detector = Detector.from_profile(str(file), device="cpu", offline=True)
    image = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
    originals, edits = detector.synthesize([image])
    expected = detector.compare(image, originals, edits[0])
    calls = []
    decode = LatentSpace.decode
    monkeypatch.setattr(
        LatentSpace, "decode", lambda *args: calls.append(len(args[1])) or decode(*args)
    )
    found = detector.detect(image)
    assert len(calls) == decoded
    assert np.allclose(found.scores, expected, atol=1e-6)


def test_edits_in_another_space_are_those_of_the_data_there(images: Tensor) -> None:
    """With Gaussian data the edit is known, and scaling all of it changes nothing."""
    schedule = Schedule.named("cosine", 200)
    editor = Editor(EditSettings(FewStep(steps=20, noise_level=1.0, clip=False)), SIZE, CPU)
    pixels = GaussianDenoiser(schedule, 0.1, 0.3)
    scaled = GaussianDenoiser(schedule, 0.3, 0.9)
    scaled.space = ScaledSpace()
    # Deterministic but for the starting noise, which is of unit size in either space: at a high
    # level both end where their data is, the same place seen in pixels.
    _, plain = editor.edit(pixels, images)
    _, other = editor.edit(scaled, images)
    assert torch.allclose(plain, other, atol=0.05)


def test_latents_are_not_clipped(images: Tensor) -> None:
    """The mean of the data is 2 there: clipped to [-1, 1] the edit would stop at 1."""
    denoiser = GaussianDenoiser(Schedule.named("cosine", 200), 2.0, 0.01)
    denoiser.space = ScaledSpace()
    editor = Editor(EditSettings(FewStep(steps=5, noise_level=0.9)), SIZE, CPU)
    _, edits = editor.edit(denoiser, images)
    assert edits.mean() == pytest.approx(2 / 3, abs=0.02)


def test_everything_is_hidden_from_an_inpainting_network() -> None:
    torch.manual_seed(0)
    unet = tiny_unet().eval()
    x, timesteps = torch.randn(1, 4, 4, 8), torch.tensor([300])
    given = torch.cat([x, torch.ones(1, 1, 4, 8), torch.zeros(1, 4, 4, 8)], 1)
    with torch.no_grad():
        expected = unet(given, timesteps).sample
        assert torch.allclose(InpaintingUnet(unet)(x, timesteps).sample, expected, atol=1e-6)
        odd = InpaintingUnet(unet)(x[..., :3, :5], timesteps).sample
    assert odd.shape == (1, 4, 3, 5)


def test_a_size_that_latents_cannot_have_is_refused(latent_model: Path) -> None:
    editor = Editor(EditSettings(FewStep(steps=1)), (30, 40), CPU)
    with pytest.raises(UserError, match="multiples of 8, not 30x40: change the denoiser's size"):
        editor.edit(load_denoiser(latent_model), torch.zeros(1, 3, 30, 40))


def test_a_damaged_autoencoder_is_named(latent_model: Path, tmp_path: Path) -> None:
    for file in latent_model.rglob("*"):
        if file.is_file() and "vae" not in str(file):
            copy = tmp_path / file.relative_to(latent_model)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    (tmp_path / "vae").mkdir()
    with pytest.raises(UserError, match=r"cannot load the autoencoder of '.*give a model"):
        load_denoiser(tmp_path)


def test_the_shipped_autoencoder_gives_pictures_back() -> None:
    """A smooth scene comes back within 22 dB, and its latents are of about unit size."""
    space = space_of(load_denoiser(Path(__file__).parents[2] / "models" / "offroad_latent"))
    rows = torch.linspace(1, -1, 64).reshape(1, 1, 64, 1)
    colours = torch.tensor([0.1, 0.2, 0.0]).reshape(1, 3, 1, 1)
    scene = (0.6 * rows + colours).expand(1, 3, 64, 96)
    latents = space.encode(scene)
    error = ((space.decode(latents) - scene) / 2).square().mean()
    assert -10 * error.log10() > 22
    assert 0.1 < latents.std() < 3


def test_an_export_holds_no_autoencoder(latent_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="latents, which an export does not hold"):
        export_denoiser(latent_model, tmp_path / "export", size=SIZE)
    assert not (tmp_path / "export").exists()
