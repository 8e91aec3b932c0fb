"""The two stages of latent diffusion: what they learn, how they resume, what they leave."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from support.training_runs import TINY_AUTOENCODER, shrink_latents, trainer, write_scenes

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.synthesis.autoencoder import Autoencoder
from anomaly_detector_ros.synthesis.denoisers.inpainting import InpaintingUnet
from anomaly_detector_ros.synthesis.denoisers.loading import load_denoiser
from anomaly_detector_ros.training import losses
from anomaly_detector_ros.training.config import TrainingConfig
from anomaly_detector_ros.training.denoising import random_masks
from anomaly_detector_ros.weights.registry import Registry

AUTOENCODER = TrainingConfig(
    stage="autoencoder", size=(40, 56), batch_size=2, steps=6, warmup_steps=2, min_crop=0.85,
)  # fmt: skip
DENOISER = TrainingConfig(
    stage="denoiser", size=(40, 56), preset="small", batch_size=2, steps=6, warmup_steps=2
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    shrink_latents(monkeypatch)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("nominal"))


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """A model directory with an autoencoder of random weights, its latents near unit deviation."""
    torch.manual_seed(0)
    autoencoder = Autoencoder(**TINY_AUTOENCODER)
    with torch.no_grad():
        for _ in range(60):
            autoencoder.encode(torch.rand(8, 3, 40, 56) * 2 - 1)
    folder = tmp_path_factory.mktemp("vae")
    autoencoder.eval().save_pretrained(folder / "vae")
    return f"{folder}/"


def run(images, output, settings, until=None, held_out=None, save_every=3):
    found = trainer(images, output, settings, held_out)
    losses_seen = []
    found.on_step = lambda step, loss: losses_seen.append(loss)
    if until is None:
        found.run(save_every)
    else:
        for _ in range(until):
            losses_seen.append(found.train_step())
        found.save(losses_seen[-1], 1.0)
    return found, losses_seen


def states(of):
    return {**of.stage.network.state_dict(), **of.stage.state().get("judge", {})}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_an_autoencoder_learns_to_give_pictures_back(images, tmp_path):
    settings = replace(AUTOENCODER, steps=80, batch_size=4, learning_rate=1e-2, ema_decay=0.9)
    found, seen = run(images, tmp_path / "run", settings, save_every=20)
    # Before the adversary joins in.
    assert np.mean(seen[22:27]) < 0.7 * np.mean(seen[:5])
    records = [json.loads(line) for line in (tmp_path / "run" / "losses.jsonl").open()]
    assert records[-1]["psnr"] > records[0]["psnr"] + 2.5
    assert records[-1]["cosine"] < 0.7 * records[0]["cosine"]
    model = Autoencoder.from_pretrained(tmp_path / "run" / "model", subfolder="vae").float()
    assert cv2.imread(str(tmp_path / "run" / "samples" / "0000080.png")).shape == (80, 224, 3)
    # What the denoiser's stage relies on.
    latents = model.eval().encode(found.stage._crops(np.random.default_rng(0)))
    assert latents.std((0, 2, 3)).tolist() == pytest.approx([1] * 4, abs=0.4)
    assert latents.mean((0, 2, 3)).tolist() == pytest.approx([0] * 4, abs=0.4)


def test_a_resumed_autoencoder_equals_an_uninterrupted_one(images, tmp_path):
    whole, _ = run(images, tmp_path / "whole", AUTOENCODER)
    run(images, tmp_path / "parts", AUTOENCODER, until=4)  # the adversary is there already
    resumed, seen = run(images, tmp_path / "parts", AUTOENCODER)
    assert len(seen) == 2
    assert same(states(whole), states(resumed))


def test_a_denoiser_of_latents_learns_and_is_a_model_of_its_own(images, vae, tmp_path):
    settings = replace(DENOISER, autoencoder=vae, steps=60, batch_size=4, learning_rate=2e-3)
    held_out = write_scenes(tmp_path / "held_out", 4, first=100)
    _, seen = run(images, tmp_path / "run", settings, held_out=held_out, save_every=20)
    assert np.mean(seen[-10:]) < 0.8 * np.mean(seen[:5])
    records = [json.loads(line) for line in (tmp_path / "run" / "losses.jsonl").open()]
    assert records[-1]["validation_0.6"] < records[0]["validation_0.6"]
    model = tmp_path / "run" / "model"
    assert json.loads((model / "model_index.json").read_text())["vae"][1] == "Autoencoder"
    denoiser = load_denoiser(model)
    assert isinstance(denoiser.unet, InpaintingUnet)
    points = denoiser.space.encode(torch.zeros(1, 3, 40, 56))
    assert denoiser(points, 500).shape == points.shape == (1, 4, 5, 7)
    assert cv2.imread(str(tmp_path / "run" / "samples" / "0000060.png")).shape == (80, 224, 3)


def test_a_resumed_denoiser_of_latents_equals_an_uninterrupted_one(images, vae, tmp_path):
    settings = replace(DENOISER, autoencoder=vae)  # with dropout, masks and light of its own
    whole, _ = run(images, tmp_path / "whole", settings)
    run(images, tmp_path / "parts", settings, until=2)
    resumed, seen = run(images, tmp_path / "parts", settings)
    assert len(seen) == 4
    assert same(states(whole), states(resumed))


def test_a_denoiser_goes_on_from_another(images, vae, tmp_path):
    first = replace(DENOISER, autoencoder=vae)
    run(images, tmp_path / "first", first, until=1)
    settings = replace(first, init=str(tmp_path / "first" / "model"))
    given = load_denoiser(tmp_path / "first" / "model").unet.state_dict()
    started = trainer(images, tmp_path / "second", settings).stage.network.state_dict()
    assert all(torch.allclose(given[name].float(), started[name], atol=1e-3) for name in given)
    pixels = replace(settings, stage="pixels")
    with pytest.raises(UserError, match=r"in_channels is 9.* model directory of the same stage"):
        trainer(images, tmp_path / "third", pixels)


def test_what_is_missing_or_too_small_is_said(images, tmp_path):
    absent = replace(DENOISER, autoencoder=str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"cannot load the autoencoder of '.*absent'"):
        trainer(images, tmp_path / "run", absent)
    with pytest.raises(UserError, match="16x24 is too small for an autoencoder"):
        trainer(images, tmp_path / "run", replace(AUTOENCODER, size=(16, 24)))
    assert not (tmp_path / "run").exists()


def test_masks_hide_all_or_some_and_never_the_same(tmp_path):
    torch.manual_seed(0)
    masks = random_masks(400, (34, 64), torch.device("cpu"))
    assert masks.shape == (400, 1, 34, 64)
    assert set(masks.unique().tolist()) == {0, 1}
    shares = masks.mean((1, 2, 3))
    assert (shares == 1).float().mean().item() == pytest.approx(0.4, abs=0.08)
    partly = shares[shares < 1]
    assert partly.min() < 0.05
    assert partly.max() > 0.5
    assert len(masks[shares < 1].flatten(1).unique(dim=0)) > 150


def test_losses_are_0_for_the_same_picture_and_see_what_each_is_for():
    torch.manual_seed(0)
    picture = torch.rand(2, 3, 64, 64) * 2 - 1
    blurred = torch.nn.functional.avg_pool2d(picture, 3, 1, 1)
    features = [torch.randn(2, 8, 4, 4)]
    assert losses.reconstruction_loss(picture, picture, features, features).item() < 1e-6
    assert losses.texture_loss(blurred, picture) > 0.5
    # The same texture in other places is nothing to it, all to the pixels.
    moved = picture.roll(8, dims=3)
    assert losses.texture_loss(moved, picture) < 0.2
    assert (moved - picture).abs().mean() > 0.5
    turned = [-features[0]]
    assert losses.reconstruction_loss(picture, picture, turned, features).item() == pytest.approx(2)


def test_the_adversary_pulls_a_set_share_as_strong_as_the_other_losses():
    torch.manual_seed(0)
    last = torch.nn.Parameter(torch.randn(3, 3))
    picture = torch.randn(5, 3) @ last
    other, verdict = picture.square().mean(), picture.sum(1)
    loss = losses.adversary_loss(verdict, other, last)
    pulls = [torch.autograd.grad(of, last, retain_graph=True)[0].norm() for of in (loss, other)]
    assert (pulls[0] / pulls[1]).item() == pytest.approx(losses.ADVERSARY_WEIGHT, rel=0.01)
    assert losses.judge_loss(torch.full((3,), 2.0), torch.full((3,), -2.0)) == 0
    assert losses.judge_loss(torch.zeros(3), torch.zeros(3)) == 2


def test_the_shipped_autoencoder_is_taken_by_default_and_goes_with_the_model(images, tmp_path):
    run(images, tmp_path / "run", DENOISER, until=1)
    given = Autoencoder.from_pretrained(Registry.default().path("offroad_latent"), subfolder="vae")
    taken = Autoencoder.from_pretrained(tmp_path / "run" / "model", subfolder="vae")
    assert same(given.state_dict(), taken.state_dict())
