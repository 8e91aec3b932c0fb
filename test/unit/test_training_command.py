"""`anomaly-detector train` as its users meet it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from support.dataset_files import write
from support.training_runs import NARROW, SIZE, scene, shrink_latents, write_scenes
from typer.testing import CliRunner

from anomaly_detector_ros.cli import train
from anomaly_detector_ros.cli.main import app
from anomaly_detector_ros.cli.nominal import DataOptions, find_nominal, shared_sources
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.sources.tally import Tally
from anomaly_detector_ros.training import measures
from anomaly_detector_ros.training.config import SIZE_PRESETS, TrainingConfig

STORE = get_typestore(Stores.ROS2_JAZZY)
COMPRESSED = "sensor_msgs/msg/CompressedImage"
BLURRED = cv2.GaussianBlur(scene(90), (0, 0), 8)


def compressed(picture: np.ndarray | None) -> bytes:
    """A CompressedImage; of None one that cannot be decoded."""
    types = STORE.types
    stamp = types["builtin_interfaces/msg/Time"](sec=1, nanosec=2)
    header = types["std_msgs/msg/Header"](stamp=stamp, frame_id="camera")
    data = np.zeros(9, np.uint8)
    if picture is not None:
        data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].ravel()
    return bytes(STORE.serialize_cdr(types[COMPRESSED](header, "png", data), COMPRESSED))


def write_bag(path: Path, pictures: list[np.ndarray | None], topics=("/camera",)) -> Path:
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        for topic in topics:
            connection = writer.add_connection(topic, COMPRESSED, typestore=STORE)
            for index, picture in enumerate(pictures):
                writer.write(connection, 1000 + index, compressed(picture))
    return path


def read(paths: list[Path], split: str | None = None, *, enlarge: bool = False, **options):
    chosen, tally = DataOptions(**options), Tally()
    sources = find_nominal(paths, split, chosen)
    config = TrainingConfig(size=SIZE, preset="small", min_crop=1.0)
    return train.read_images("images", sources, config, chosen, tally, enlarge), tally


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(SIZE_PRESETS, "small", NARROW)
    monkeypatch.setattr(train, "_SAMPLES", 8)
    monkeypatch.setattr(measures, "_SAMPLING_STEPS", 2)


def test_frames_of_a_bag_without_blurred_repeated_and_broken_ones(tmp_path):
    bag = write_bag(tmp_path / "bag", [scene(0), scene(0), BLURRED, None, scene(1), scene(2)])
    for path in (bag, bag / "bag.mcap"):
        images, tally = read([path])
        assert len(images) == tally.processed == 3
        assert tally.to_dict()["skipped"] == {"unreadable": 1, "blurred": 1, "like the last": 1}
    assert np.array_equal(images.images[1], read([write_scenes(tmp_path / "f", 2)])[0].images[1])


def test_every_other_frame_of_a_bag(tmp_path):
    bag = write_bag(tmp_path / "bag", [scene(i) if i % 2 == 0 else None for i in range(6)])
    images, tally = read([bag], stride=2)
    assert len(images) == tally.read == 3


def test_the_topic_of_a_bag_must_be_chosen_where_there_are_several(tmp_path):
    bag = write_bag(tmp_path / "bag", [scene(0)], ["/left", "/right"])
    with pytest.raises(UserError, match="several image topics"):
        read([bag])
    assert len(read([bag], topic="/right")[0]) == 1


def test_a_bag_without_good_frames_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no frame of '.*bag' is good .*2 blurred"):
        read([write_bag(tmp_path / "bag", [BLURRED, BLURRED])])


def test_small_frames_are_left_out_or_enlarged(tmp_path):
    small = write_scenes(tmp_path / "small", 3)
    for picture in small.iterdir():
        cv2.imwrite(str(picture), cv2.resize(cv2.imread(str(picture)), (30, 12)))
    with pytest.raises(UserError, match=r"3 smaller than --size\)\): give --enlarge or a smaller"):
        read([small])
    images, tally = read([small], enlarge=True)
    assert tally.processed == len(images) == 3
    assert images.whole(0).shape == (*SIZE, 3)
    assert min(images.images[0].shape[:2]) >= SIZE[0]


def test_frames_of_a_video(tmp_path):
    file = tmp_path / "drive.avi"
    video = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 10, (60, 40))
    for i in range(6):
        video.write(scene(i))
    video.release()
    assert len(read([file])[0]) == 6
    assert len(read([file], stride=3)[0]) == 2


def test_of_a_labelled_data_set_only_the_nominal_images(tmp_path, monkeypatch):
    monkeypatch.setenv("ANOMALY_DETECTOR_CACHE", str(tmp_path / "cache"))
    for i in range(3):
        write(tmp_path / "images" / f"{i}.png", scene(i))
        write(tmp_path / "masks" / f"{i}.png", np.full((40, 60), 255 * (i == 1), np.uint8))
    mask = np.zeros((40, 60), np.uint8)
    mask[0, 0] = 7
    write(tmp_path / "masks" / "2.png", mask)
    labelled = find_nominal([tmp_path], None, DataOptions("folder"))
    assert [source.file.stem for source in labelled] == ["0", "1"]
    assert list((tmp_path / "cache" / "evaluation" / "labels").rglob("*.json"))
    # Without --dataset its labels are no images either.
    assert len(find_nominal([tmp_path], None, DataOptions())) == 3
    with pytest.raises(UserError, match="no split 'train'"):
        find_nominal([tmp_path], "train", DataOptions("folder"))
    with pytest.raises(UserError, match="name the layout with --dataset"):
        find_nominal([tmp_path], "train", DataOptions())


def test_rellis_frames_by_their_labels(shared_data, tmp_path, monkeypatch):
    monkeypatch.setenv("ANOMALY_DETECTOR_CACHE", str(tmp_path / "cache"))
    pictures = find_nominal([shared_data / "rellis"], "train", DataOptions("rellis"))
    every = find_nominal([shared_data / "rellis"], "all", DataOptions("rellis"))
    assert 0 < len(pictures) <= len(every)


def test_several_sources_count_once_each(tmp_path):
    folder = write_scenes(tmp_path / "a", 3)
    bag = write_bag(tmp_path / "bag", [scene(9)])
    assert len(read([folder, bag, folder, bag])[0]) == 4
    sources = find_nominal([folder, bag, folder, bag], None, DataOptions())
    assert shared_sources(sources, sources) == 4


def test_a_run_from_the_command_line(tmp_path):
    data, held_out = write_scenes(tmp_path / "data"), write_scenes(tmp_path / "new", 4, first=50)
    bag = write_bag(tmp_path / "bag", [scene(30), BLURRED])
    output = tmp_path / "run"
    arguments = (
        "--data", data, "--data", bag, "--validation", held_out, "--validation", data,
        "--output", output, "--size", "16x24", "--steps", 4, "--batch-size", 2,
        "--save-every", 2, "--snapshot-every", 2, "--device", "cpu", "--min-crop", 0.5,
    )  # fmt: skip
    first = CliRunner().invoke(app, ["train", *map(str, arguments), "--json"])
    assert first.exit_code == 0, first.output
    assert re.search(r"step 4, 8 images: loss \S+, validation \S+, \S+ images/s", first.stderr)
    summary = json.loads(first.stdout)
    assert summary["images"] == 25
    assert summary["validation_images"] == 28
    assert summary["skipped_frames"]["blurred"] == 1
    assert summary["losses"]["step"] == 4
    assert summary["images_per_second"] > 0
    assert summary["images_seen"] == 8
    assert (output / "snapshots" / "step_0000004" / "unet").is_dir()
    assert summary["memorisation"]["memorised_ratio"] > 0
    assert json.loads((output / "memorisation.json").read_text()) == summary["memorisation"]
    assert cv2.imread(str(output / "memorisation.png")) is not None
    for name in ("curves.png", "losses.jsonl", "model", "checkpoint.pt", "samples/0000004.png"):
        assert (output / name).exists(), name
    assert json.loads((output / "training.json").read_text())["min_crop"] == 0.5

    result = CliRunner().invoke(app, ["train", *map(str, arguments)])
    assert "frames left out: 1 blurred" in result.stderr
    assert "25 training images are few" in result.stderr
    assert "24 of the validation files are trained on" in result.stderr
    assert "step 4" in result.stdout


def test_latent_diffusion_from_the_command_line(tmp_path, monkeypatch):
    shrink_latents(monkeypatch)
    common = ("--data", write_scenes(tmp_path / "data"), "--size", "40x56", "--device", "cpu")
    common = (*common, "--steps", 2, "--batch-size", 2, "--json")

    def summary(*arguments):
        result = CliRunner().invoke(app, ["train", *map(str, (*common, *arguments))])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    first = summary("--stage", "autoencoder", "--output", tmp_path / "autoencoder")
    assert first["memorisation"] is None
    assert first["losses"]["psnr"] > 0
    assert json.loads((tmp_path / "autoencoder" / "training.json").read_text())["min_crop"] == 0.75
    arguments = ("--stage", "denoiser", "--preset", "small", "--output", tmp_path / "denoiser")
    second = summary(*arguments, "--autoencoder", tmp_path / "autoencoder" / "model")
    assert (second["stage"], second["images_seen"]) == ("denoiser", 4)
    assert {f.name for f in (tmp_path / "denoiser" / "model").iterdir()} == {
        "model_index.json", "scheduler", "unet", "vae"
    }  # fmt: skip
    assert (tmp_path / "denoiser" / "memorisation.png").is_file()


def test_an_unknown_stage_is_refused(tmp_path):
    arguments = ("--data", write_scenes(tmp_path / "data"), "--output", tmp_path / "run")
    result = CliRunner().invoke(app, ["train", "--stage", "latents", *map(str, arguments)])
    assert "stage is 'latents'" in str(result.exception)
    assert "'autoencoder' or 'denoiser'" in str(result.exception)


def test_help_shows_every_kind_of_source():
    text = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"}).stdout
    for word in ("rosbag2", "--dataset", "--stride", "--min-crop", "accelerate launch", ".mcap"):
        assert word in text
