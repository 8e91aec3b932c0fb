import json

import cv2
import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.images import find_images
from anomaly_detector_ros.training import ddpm
from anomaly_detector_ros.training.dataset import TrainingImages
from anomaly_detector_ros.training.ddpm import Trainer, TrainingConfig


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Sixteen scenes of a bright sky over a darker ground."""
    folder = tmp_path_factory.mktemp("nominal")
    rng = np.random.default_rng(0)
    for i in range(16):
        scene = np.full((40, 60, 3), 200, np.uint8)
        scene[rng.integers(15, 25) :] = (40, 90, 60)
        cv2.imwrite(str(folder / f"{i}.png"), scene)
    return folder


@pytest.fixture(autouse=True)
def narrow_network(monkeypatch):
    monkeypatch.setitem(ddpm.SIZE_PRESETS, "small", (32, 32))


CONFIG = TrainingConfig(size=(16, 24), steps=6, batch_size=2, warmup_steps=2)


def train(images, output, config=CONFIG, until=None, save_every=2):
    losses = []
    trainer = Trainer(
        config,
        TrainingImages(find_images(images), config.size),
        output,
        TrainingImages(find_images(images)[:2], config.size),
        on_step=lambda step, loss: losses.append(loss),
    )
    if until is None:
        trainer.run(save_every)
    else:
        while trainer.step < until:
            losses.append(trainer.train_step())
        trainer.save(losses[-1])
    return trainer, losses


def test_a_run_leaves_a_model_that_diffusers_loads(images, tmp_path):
    output = tmp_path / "run"
    train(images, output)
    pipeline = DDPMPipeline.from_pretrained(output / "model")
    assert tuple(pipeline.unet.config.sample_size) == (16, 24)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    records = [json.loads(line) for line in (output / "losses.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2, 4, 6]
    assert all(np.isfinite(record["validation_0.6"]) for record in records)
    assert cv2.imread(str(output / "samples" / "0000006.png")).shape == (32, 96, 3)
    assert not list(output.glob("*.partial"))


def test_the_loss_falls(images, tmp_path):
    config = TrainingConfig(size=(16, 24), steps=60, batch_size=8, warmup_steps=5)
    _, losses = train(images, tmp_path / "run", config, save_every=60)
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5])


def test_a_resumed_run_equals_an_uninterrupted_one(images, tmp_path):
    whole, _ = train(images, tmp_path / "whole")
    train(images, tmp_path / "parts", until=4)
    resumed, losses = train(images, tmp_path / "parts")
    assert len(losses) == 2
    expected = whole.accelerator.unwrap_model(whole.unet).state_dict()
    found = resumed.accelerator.unwrap_model(resumed.unet).state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_losses_behind_the_checkpoint_are_forgotten(images, tmp_path):
    train(images, tmp_path / "run", until=4)
    losses = tmp_path / "run" / "losses.jsonl"
    with losses.open("a") as file:  # as a run killed before its checkpoint leaves them
        file.write('{"step": 6, "loss": 1.0}\n{"step": 8, "lo')
    train(images, tmp_path / "run")
    assert [json.loads(line)["step"] for line in losses.read_text().splitlines()] == [4, 6]


def test_training_starts_from_given_weights_or_says_why_not(images, tmp_path):
    train(images, tmp_path / "first", until=1)
    settings = {"size": (16, 24), "steps": 6, "batch_size": 2, "warmup_steps": 2}
    config = TrainingConfig(**settings, init=str(tmp_path / "first" / "model"))
    images = TrainingImages(find_images(images), config.size)
    given = DDPMPipeline.from_pretrained(tmp_path / "first" / "model").unet.state_dict()
    found = Trainer(config, images, tmp_path / "second").unet.state_dict()
    assert all(torch.allclose(given[name].float(), found[name], atol=1e-3) for name in given)
    absent = TrainingConfig(**settings, init=str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"cannot start from the weights of '.*absent'"):
        Trainer(absent, images, tmp_path / "third")


def test_an_output_of_another_run_is_refused(images, tmp_path):
    train(images, tmp_path / "run", until=1)
    other = TrainingConfig(size=(16, 24), steps=6, batch_size=2, warmup_steps=2, seed=1)
    with pytest.raises(UserError, match="other settings"):
        train(images, tmp_path / "run", other)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file.txt").touch()
    with pytest.raises(UserError, match="not empty"):
        train(images, tmp_path / "full")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"size": (60, 120)}, "multiples of 8"), ({"preset": "huge"}, "unknown preset 'huge'")],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        TrainingConfig(**settings)


def test_augmented_crops_keep_the_scene_upright(images):
    data = TrainingImages(find_images(images), (16, 24))
    rng = np.random.default_rng(0)
    for i in range(len(data)):
        crop = data.augmented(i, rng)
        assert crop.shape == (16, 24, 3)
        assert crop[0].mean() > crop[-1].mean()


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(UserError, match="no images"):
        find_images(tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        find_images(tmp_path / "absent")
    (tmp_path / "broken.jpg").write_bytes(b"not a jpeg")
    with pytest.raises(UserError, match=r"cannot read '.*broken.jpg'"):
        TrainingImages(find_images(tmp_path), (16, 24))
