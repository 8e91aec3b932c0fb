"""Training runs: what they leave, how they resume, and what they refuse."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections import namedtuple
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from support.training_runs import (
    CONFIG,
    NARROW,
    free_port,
    train_as_one_of_two,
    train_on_and_on,
    trainer,
    write_scenes,
)

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.runtime.parts import read_settings
from anomaly_detector_ros.synthesis.denoisers.loading import load_denoiser
from anomaly_detector_ros.training import measures
from anomaly_detector_ros.training.config import SIZE_PRESETS, TrainingConfig, build_unet
from anomaly_detector_ros.training.journal import Journal, plot_losses


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("nominal"))


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("held_out"), 4, first=100)


@pytest.fixture(scope="module")
def processes():
    """Starts processes that have imported torch already, but not run it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["anomaly_detector_ros.training.trainer"])
    return context


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(SIZE_PRESETS, "small", NARROW)
    monkeypatch.setattr(measures, "_SAMPLING_STEPS", 2)


def train(images, output, config=CONFIG, held_out=None, until=None, save_every=2, snapshots=None):
    losses = []
    run = trainer(images, output, config, held_out)
    run.on_step = lambda step, loss: losses.append(loss)
    if until is None:
        run.run(save_every, snapshots)
    else:
        while run.step < until:
            losses.append(run.train_step())
        run.save(losses[-1], 1.0)
    return run, losses


def weights(run):
    return run.stage.network.state_dict()


def test_a_run_leaves_a_model_that_diffusers_loads(images, held_out, tmp_path):
    output = tmp_path / "run"
    train(images, output, held_out=held_out)
    pipeline = DDPMPipeline.from_pretrained(output / "model")
    assert tuple(pipeline.unet.config.sample_size) == (16, 24)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    records = [json.loads(line) for line in (output / "losses.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2, 4, 6]
    assert [record["images"] for record in records] == [4, 8, 12]
    assert all(record["images_per_second"] > 0 for record in records)
    assert all(np.isfinite(record["validation_0.6"]) for record in records)
    assert cv2.imread(str(output / "samples" / "0000006.png")).shape == (32, 96, 3)
    assert cv2.imread(str(output / "curves.png")).std() > 1
    assert not list(output.glob("*.partial"))
    weights = next((output / "model" / "unet").glob("*.safetensors"))
    assert weights.stat().st_mode == (output / "training.json").stat().st_mode


def test_the_loss_falls(images, tmp_path):
    config = replace(CONFIG, steps=40, batch_size=4, warmup_steps=5)
    _, losses = train(images, tmp_path / "run", config, save_every=40)
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])


def test_a_resumed_run_equals_an_uninterrupted_one(images, tmp_path):
    whole, _ = train(images, tmp_path / "whole")
    train(images, tmp_path / "parts", until=4)
    resumed, losses = train(images, tmp_path / "parts")
    assert len(losses) == 2
    expected, found = weights(whole), weights(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_killed_run_ends_like_one_that_was_not_killed(images, tmp_path, processes):
    config = replace(CONFIG, steps=12)
    whole, _ = train(images, tmp_path / "whole", config, save_every=12)
    output = tmp_path / "killed"
    child = processes.Process(target=train_on_and_on, args=(images, output, config))
    child.start()
    deadline = time.monotonic() + 120
    while not (output / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.03)  # into the next steps, or the writing of the next checkpoint
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    resumed, losses = train(images, output, config)
    assert 0 < len(losses) < 12
    expected, found = weights(whole), weights(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    steps = [json.loads(line)["step"] for line in (output / "losses.jsonl").open()]
    assert steps == list(range(2, 13, 2))


def train_two(processes, images, output, interrupted_at=None):
    """What each of two processes found: weights and losses."""
    port = free_port()
    children = [
        processes.Process(
            target=train_as_one_of_two, args=(rank, port, images, output, interrupted_at)
        )
        for rank in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0]
    return [np.load(output.with_name(f"{output.name}_{rank}.npz")) for rank in range(2)]


def test_two_processes_train_one_model_on_batches_of_their_own(images, tmp_path, processes):
    first, second = train_two(processes, images, tmp_path / "run")
    assert np.array_equal(first["weights"], second["weights"])
    assert len(first["losses"]) == len(second["losses"]) == 6
    assert not np.isclose(first["losses"], second["losses"]).any()
    lines = (tmp_path / "run" / "losses.jsonl").read_text().splitlines()
    assert [json.loads(line)["images"] for line in lines] == [12, 24]


def test_two_processes_resume_exactly(images, tmp_path, processes):
    whole, _ = train_two(processes, images, tmp_path / "whole")
    resumed, _ = train_two(processes, images, tmp_path / "resumed", interrupted_at=3)
    assert len(resumed["losses"]) == 3
    assert np.array_equal(whole["losses"][3:], resumed["losses"])
    assert np.array_equal(whole["weights"], resumed["weights"])


def test_a_run_stops_in_time_and_goes_on_later(images, tmp_path):
    whole, _ = train(images, tmp_path / "whole")
    for steps_done in (1, 2):
        run = trainer(images, tmp_path / "parts")
        run.run(max_seconds=0)
        assert run.step == steps_done
    resumed, losses = train(images, tmp_path / "parts")
    assert len(losses) == 4
    expected, found = weights(whole), weights(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_snapshots_are_models_that_say_what_they_have_seen(images, tmp_path):
    output = tmp_path / "run"
    train(images, output, snapshots=3)
    assert [f.name for f in sorted((output / "snapshots").iterdir())] == [
        "step_0000003", "step_0000006"
    ]  # fmt: skip
    facts = json.loads((output / "snapshots" / "step_0000003" / "snapshot.json").read_text())
    assert facts == {"step": 3, "images": 6}
    early, late, final = (
        load_denoiser(directory).unet.state_dict()
        for directory in (
            output / "snapshots" / "step_0000003",
            output / "snapshots" / "step_0000006",
            output / "model",
        )
    )
    assert all(torch.equal(late[name], final[name]) for name in final)
    assert not all(torch.equal(early[name], final[name]) for name in final)


def test_snapshots_of_a_resumed_run_are_those_of_an_uninterrupted_one(images, tmp_path):
    train(images, tmp_path / "whole", snapshots=2)
    output = tmp_path / "parts"
    train(images, output, until=3)
    # As a run leaves them that was killed in writing one, behind its last checkpoint.
    (output / "snapshots" / "step_0000004.partial").mkdir(parents=True)
    train(images, output, snapshots=2)
    found = sorted(folder.name for folder in (output / "snapshots").iterdir())
    assert found == ["step_0000004", "step_0000006"]  # step 2 was taken without
    for name in found:
        expected, resumed = (
            load_denoiser(tmp_path / run / "snapshots" / name).unet.state_dict()
            for run in ("whole", "parts")
        )
        assert all(torch.equal(expected[key], resumed[key]) for key in expected)
        facts = (tmp_path / "whole" / "snapshots" / name / "snapshot.json").read_text()
        assert (output / "snapshots" / name / "snapshot.json").read_text() == facts


def test_too_many_snapshots_for_the_disk_are_refused(images, tmp_path, monkeypatch):
    run = trainer(images, tmp_path / "run", replace(CONFIG, steps=1000))
    usage = namedtuple("usage", "total used free")
    free = 10 * run.parameters
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(free, 0, free))
    with pytest.raises(UserError, match="no room for snapshots in"):
        run.run(snapshot_every=100)
    assert run.step == 0


def test_losses_behind_the_checkpoint_are_forgotten(images, tmp_path):
    train(images, tmp_path / "run", until=4)
    losses = tmp_path / "run" / "losses.jsonl"
    with losses.open("a") as file:  # as a run killed before its checkpoint leaves them
        file.write('{"step": 6, "loss": 1.0}\n{"step": 8, "lo')
    train(images, tmp_path / "run")
    assert [json.loads(line)["step"] for line in losses.read_text().splitlines()] == [4, 6]


def test_training_starts_from_given_weights_or_says_why_not(images, tmp_path, monkeypatch):
    train(images, tmp_path / "first", until=1)
    config = replace(CONFIG, init=str(tmp_path / "first" / "model"))
    given = DDPMPipeline.from_pretrained(tmp_path / "first" / "model").unet.state_dict()
    found = trainer(images, tmp_path / "second", config).stage.network.state_dict()
    assert all(torch.allclose(given[name].float(), found[name], atol=1e-3) for name in given)
    monkeypatch.setitem(SIZE_PRESETS, "small", (64, 64))  # what it would start from otherwise
    again = trainer(images, tmp_path / "other", config)
    assert again.parameters == sum(value.numel() for value in given.values())
    absent = replace(CONFIG, init=str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"cannot start from the weights of '.*absent'"):
        trainer(images, tmp_path / "third", absent)


def test_an_output_of_another_run_is_refused(images, tmp_path):
    train(images, tmp_path / "run", until=1)
    with pytest.raises(UserError, match="other settings"):
        train(images, tmp_path / "run", replace(CONFIG, seed=1))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file.txt").touch()
    with pytest.raises(UserError, match="not empty"):
        train(images, tmp_path / "full")


def test_a_run_older_than_a_setting_resumes_with_its_default(images, tmp_path):
    train(images, tmp_path / "run", until=4)
    file = tmp_path / "run" / "training.json"
    recorded = json.loads(file.read_text())
    del recorded["min_crop"]
    file.write_text(json.dumps(recorded))
    assert trainer(images, tmp_path / "run").step == 4
    with pytest.raises(UserError, match="other settings"):
        trainer(images, tmp_path / "run", replace(CONFIG, min_crop=0.5))


def test_too_few_images_are_refused(tmp_path):
    few = write_scenes(tmp_path / "few", 19)
    with pytest.raises(UserError, match="19 training images are too few"):
        trainer(few, tmp_path / "run")


def test_a_full_disk_is_refused_before_training(images, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(UserError, match=r"no room for checkpoints .* MB needed, 0 MB free"):
        trainer(images, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_diverging_run_stops_and_keeps_its_last_checkpoint(images, tmp_path):
    run, _ = train(images, tmp_path / "run", until=4)
    with torch.no_grad():
        next(run.network.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="diverged at step 5"):
        run.run(save_every=1)
    resumed = trainer(images, tmp_path / "run")
    assert resumed.step == 4
    assert all(value.isfinite().all() for value in weights(resumed).values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (60, 120)}, "size.0 is 60: it must be a multiple of 8"),
        ({"size": (64, 8)}, "size.1 is 8: it must be greater than or equal to 16"),
        ({"preset": "huge"}, "preset is 'huge': it must be one of small, base"),
        ({"beta_schedule": "square"}, "beta_schedule is 'square': it must be one of linear"),
        ({"min_crop": 0.0}, "min_crop is 0.0: it must be greater than 0"),
        ({"min_crop": 1.5}, "min_crop is 1.5: it must be less than or equal to 1"),
        ({"learning_rate": -1e-4}, "learning_rate is -0.0001"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        read_settings(TrainingConfig, settings, "training")


@pytest.mark.parametrize(
    ("preset", "channels", "millions"),
    [("small", (32, 64, 128, 192), 7.05), ("base", (64, 128, 256, 448), 35.03)],
)
def test_presets_have_the_documented_size(monkeypatch, preset, channels, millions):
    monkeypatch.setitem(SIZE_PRESETS, preset, channels)
    with torch.device("meta"):
        unet = build_unet(TrainingConfig(preset=preset))
    assert sum(p.numel() for p in unet.parameters()) == pytest.approx(millions * 1e6, rel=1e-3)


def test_curves_of_a_single_checkpoint_can_be_seen(tmp_path):
    plot_losses([{"step": 5, "loss": 0.1}], tmp_path / "one.png")
    plot_losses([{"step": i, "loss": 1 / i} for i in range(1, 9)], tmp_path / "many.png")
    one, many = (cv2.imread(str(tmp_path / f"{name}.png")) for name in ("one", "many"))
    assert one.shape == many.shape
    for picture in (one, many):  # matplotlib's first colour
        assert (np.abs(picture.astype(int) - (180, 119, 31)).sum(2) < 30).sum() > 50


def test_tensorboard_shows_what_the_losses_file_holds(tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator
    record = Journal(tmp_path, 0)
    assert record.has_tensorboard
    for step in (2, 4):
        record.add(
            {"step": step, "loss": 1 / step, "validation_0.2": 0.5}, np.zeros((8, 8, 3), "u1")
        )
    record.close()
    events = accumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(2, 0.5), (4, 0.25)]
    assert events.Scalars("validation/0.2")[1].value == 0.5
    assert len(events.Images("samples")) == 2


def test_without_tensorboard_the_losses_file_is_written_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    record = Journal(tmp_path, 0)
    assert not record.has_tensorboard
    record.add({"step": 1, "loss": 0.5}, np.zeros((8, 8, 3), np.uint8))
    record.close()
    assert json.loads((tmp_path / "losses.jsonl").read_text()) == {"step": 1, "loss": 0.5}
    assert not (tmp_path / "tensorboard").exists()
