"""Inputs that users of neighbouring tools had trouble with, kept beside the checkout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image as PilImage
from PIL import ImageOps
from support.training_runs import NARROW
from typer.testing import CliRunner, Result

from anomaly_detector_ros.cli import train
from anomaly_detector_ros.cli.main import app
from anomaly_detector_ros.imaging.images import read_rgb
from anomaly_detector_ros.sources.frames import Frame, find_sources, read_sources
from anomaly_detector_ros.sources.recordings import BagReader
from anomaly_detector_ros.sources.tally import Tally
from anomaly_detector_ros.training import measures
from anomaly_detector_ros.training.config import SIZE_PRESETS


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def frames(*given: Path) -> list[Frame]:
    return list(read_sources(find_sources(given), Tally(stop=True)))


RECORDINGS = {
    "bag_qos_differs/qos_edited_mcap": (4, 12),
    "mcap_without_message_index/chunk_without_message_index.mcap": (4, 8),
    "sqlite_wal/wal_sqlite": (8, 16),
    "mcap_unchunked_interleaved/unchunked_interleaved.mcap": (4, 8),
    "mcap_other_channels/empty_profile.mcap": (4, 8),
    "mcap_other_channels/json_channel.mcap": (4, 4),
    "bag_misleading_errors/ros1.bag": (4, 4),
    "bag_misleading_errors/file_zstd/drive.mcap.zstd": (4, 12),
}


@pytest.mark.parametrize("name", RECORDINGS)
def test_recordings_are_read_whole(
    shared_cases: Path, tmp_path: Path, light_profile: str, name: str
) -> None:
    bag, (pictures, messages) = shared_cases / name, RECORDINGS[name]
    assert len(frames(bag)) == pictures
    with BagReader(bag) as reader:
        times = [time for _, time, _ in reader.messages()]
    assert len(times) == messages
    assert times == sorted(times)
    output = tmp_path / "out"
    result = run(
        *("bag", bag, "--output", output, "--outputs", "mask"),
        *("--profile", light_profile, "--device", "cpu", "--offline"),
    )
    assert result.exit_code == 0, result.output
    assert f"{pictures} read, {pictures} processed, 0 skipped" in result.stderr
    with BagReader(output) as reader:
        assert reader.message_count == len(list(reader.messages())) == messages + pictures


def test_what_is_left_out_of_a_recording_is_named(
    shared_cases: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = shutil.copy(shared_cases / "mcap_other_channels" / "json_channel.mcap", tmp_path)
    frames(Path(file))
    assert "/imu (json)" in caplog.text


def test_a_lost_log_of_sqlite_is_missed(
    shared_cases: Path, tmp_path: Path, light_profile: str
) -> None:
    shutil.copytree(shared_cases / "sqlite_wal" / "wal_sqlite", tmp_path / "bag")
    for log in ("-wal", "-shm"):
        (tmp_path / "bag" / f"wal_sqlite.db3{log}").unlink()
    result = run(
        "detect", tmp_path / "bag", "--output", tmp_path / "out", "--profile", light_profile
    )
    assert result.exit_code == 1
    assert "it is not whole" in str(result.exception)


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("comp_16UC1_png", 40),
        ("enc_16UC1_thermal", 40),
        ("enc_bayer_rggb16", 100),
        ("enc_mono16_thermal", 40),
        ("enc_nv12", 100),
    ],
)
def test_encodings_keep_their_contrast(shared_cases: Path, name: str, levels: int) -> None:
    for frame in frames(shared_cases / "encodings" / name):
        assert len(np.unique(frame.pixels)) >= levels
        assert np.ptp(frame.pixels) > 200


@pytest.mark.parametrize("name", ["float01.tif", "rgbf32.tif", "thermal14.png"])
def test_deep_pictures_keep_their_contrast(shared_cases: Path, name: str) -> None:
    pixels = read_rgb(shared_cases / "grey_ranges" / name)
    assert len(np.unique(pixels)) >= 60
    assert np.ptp(pixels) == 255


def test_pictures_are_upright(shared_cases: Path) -> None:
    folder = shared_cases / "tiff_orientation"
    upright = read_rgb(folder / "upright.png")
    for name in ("o3.tif", "o6.tif"):
        np.testing.assert_array_equal(read_rgb(folder / name), upright)
    for pattern in ("mirrored_orientation/*.jpg", "demo_ignores_orientation/phone/*.jpg"):
        for file in shared_cases.glob(pattern):
            with PilImage.open(file) as picture:
                expected = np.array(ImageOps.exif_transpose(picture))
            np.testing.assert_array_equal(read_rgb(file), expected)


def test_hidden_files_are_no_pictures(
    shared_cases: Path, light_profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shared_cases / "mac_and_nas_folders"
    assert [f.source.file.name for f in frames(folder / "mac")] == ["IMG_0001.jpg", "IMG_0002.jpg"]
    assert [f.source.file.name for f in frames(folder / "hidden")] == ["a.jpg"]
    assert len(frames(folder / "ids_mac")) == 4
    evaluate(folder / "ids_mac", light_profile, tmp_path, monkeypatch)


def test_links_are_followed_once(shared_cases: Path, tmp_path: Path) -> None:
    root = tmp_path / "linked"
    shutil.copytree(shared_cases / "linked_folder" / "linked", root, symlinks=True)
    link = root / "dataset" / "drive_a"
    if not link.is_symlink():  # a copy by a tool that does not know them
        link.unlink()
        link.symlink_to("../real_elsewhere")
    assert len(frames(root / "dataset")) == 4
    assert len(frames(root)) == 4
    (root / "real_elsewhere" / "loop").symlink_to(root)
    names = [f.source.file.relative_to(root).as_posix() for f in frames(root)]
    assert names == ["dataset/own.jpg", *(f"real_elsewhere/f{i}.jpg" for i in range(3))]


@pytest.mark.parametrize("command", ["detect", "calibrate", "train", "evaluate"])
def test_one_bad_picture(
    shared_cases: Path,
    tmp_path: Path,
    light_profile: str,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    monkeypatch.setitem(SIZE_PRESETS, "small", NARROW)
    monkeypatch.setattr(train, "_SAMPLES", 4)
    monkeypatch.setattr(measures, "_SAMPLING_STEPS", 2)
    monkeypatch.setenv("ANOMALY_DETECTOR_CACHE", str(tmp_path / "cache"))
    images = tmp_path / "data" / "images"
    for number in range(3):  # enough to train on
        shutil.copytree(shared_cases / "one_bad_picture/nominal_one_cut", images / str(number))
    profile = ("--profile", light_profile, "--device", "cpu", "--offline")
    arguments: tuple[object, ...] = {
        "detect": (images, "--output", tmp_path / "out", *profile),
        "calibrate": ("--data", images, "--output", tmp_path / "c.safetensors", *profile),
        "train": (
            *("--data", images, "--output", tmp_path / "run", "--size", "16x24", "--steps", 1),
            *("--batch-size", 1, "--device", "cpu"),
        ),
        "evaluate": ("--root", tmp_path / "data", "--method", "random", *profile),
    }[command]
    result = run(command, *arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    assert "24 read, 21 processed, 3 skipped (3 unreadable)" in result.stderr
    assert "unreadable: cannot read " in result.stderr
    assert "s6.jpg" in result.stderr
    again = ["--overwrite"] if command == "detect" else []
    stopped = run(command, *arguments, *again, "--on-error", "stop")
    assert stopped.exit_code == 1
    assert "s6.jpg" in str(stopped.exception)


def test_pictures_of_any_size(shared_cases: Path, tmp_path: Path, light_profile: str) -> None:
    folder = shared_cases / "default_profile_stops_at_one" / "sizes"
    result = run(
        *("detect", folder, "--output", tmp_path, "--profile", light_profile),
        *("--device", "cpu", "--offline"),
    )
    assert result.exit_code == 0, result.output
    assert "5 read, 5 processed, 0 skipped" in result.stderr


@pytest.mark.parametrize(
    "name",
    [
        "masks_0_255/binary_0_255",
        *(f"mask_formats/{k}" for k in ("palette", "bmp_masks", "mask_suffix")),
    ],
)
def test_masks(
    shared_cases: Path,
    tmp_path: Path,
    light_profile: str,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    evaluate(shared_cases / name, light_profile, tmp_path, monkeypatch)


def evaluate(root: Path, profile: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of perfect edits and of chance tell whether the masks were understood."""
    monkeypatch.setenv("ANOMALY_DETECTOR_CACHE", str(folder / "cache"))
    result = run(
        *("evaluate", "--root", root, "--method", "random", "--json"),
        *("--profile", profile, "--device", "cpu", "--offline"),
    )
    assert result.exit_code == 0, (result.output, result.exception)
    assert "4 read, 4 processed, 0 skipped" in result.stderr
    (row,) = json.loads(result.stdout)["rows"]
    # By chance the precision is the share of anomalous pixels.
    masks = [PilImage.open(file) for file in sorted((root / "masks").iterdir())
             if not file.name.startswith(".")]  # fmt: skip
    share = np.mean([np.array(mask) > 0 for mask in masks])
    assert row["auc_pr"] == pytest.approx(share, rel=0.1)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("video_false_end/trimmed.mp4", 25),
        ("video_false_end/vfr.mkv", 50),
        ("video_suffixes/steady.ts", 40),
    ],
)
def test_videos(
    shared_cases: Path, tmp_path: Path, light_profile: str, name: str, count: int
) -> None:
    video = Path(shutil.copy(shared_cases / name, tmp_path / "video"))  # known by its content
    arguments = ("--profile", light_profile, "--device", "cpu", "--offline")
    result = run("detect", video, "--output", tmp_path / "out", *arguments)
    assert result.exit_code == 0, result.output
    assert f"{count} read, {count} processed, 0 skipped" in result.stderr
    capture, decoded = cv2.VideoCapture(str(shared_cases / name)), 0
    while capture.grab():
        decoded += 1
    assert decoded == count
    assert len(frames(tmp_path / "video")) == count
