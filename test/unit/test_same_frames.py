"""A folder, a video and a recording give every command the same frames, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image as PilImage
from rosbags.rosbag2 import StoragePlugin
from support.bag_files import image_bytes, write_bag
from support.training_runs import NARROW, scene
from typer.testing import CliRunner

from anomaly_detector_ros import fitting
from anomaly_detector_ros.cli import train
from anomaly_detector_ros.cli.main import app
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.evaluation.run import Evaluation
from anomaly_detector_ros.imaging.messages import image_to_rgb
from anomaly_detector_ros.sources.frames import find_sources, read_sources
from anomaly_detector_ros.sources.tally import Tally
from anomaly_detector_ros.training import dataset, measures
from anomaly_detector_ros.training.config import SIZE_PRESETS

FRAMES = 20  # as few as one may train on


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    """A data set of odd pictures, a video and a recording."""
    root = tmp_path / "set"
    images, hidden, linked = root / "images", root / "images" / ".thumbnails", tmp_path / "linked"
    for folder in (hidden, linked, root / "masks" / "more"):
        folder.mkdir(parents=True)
    cv2.imwrite(str(images / "deep.png"), scene(0)[..., 0].astype(np.uint16) * 16)
    PilImage.fromarray(scene(1)).save(images / "plain.webp", lossless=True)
    exif = PilImage.Exif()
    exif[0x0112] = 6
    PilImage.fromarray(scene(2).swapaxes(0, 1).copy()).save(images / "turned.jpg", exif=exif)
    PilImage.fromarray(scene(3)).convert("CMYK").save(images / "wide.tif")
    PilImage.fromarray(scene(4)).save(linked / "linked.png")
    names = ["deep", "plain", "turned", "wide", "more/linked"]
    for number in range(len(names), FRAMES):
        names.append(str(number))
        cv2.imwrite(str(images / f"{number}.png"), scene(number))
    (images / "more").symlink_to(linked)
    (images / "._plain.webp").write_bytes(b"Mac OS X")
    PilImage.fromarray(scene(60)).save(hidden / "small.png")
    for name in names:
        cv2.imwrite(str(root / "masks" / f"{name}.png"), np.eye(40, 60, dtype=np.uint8))
    (tmp_path / "film").mkdir()
    video = tmp_path / "film" / "no suffix"
    writer = cv2.VideoWriter(f"{video}.avi", cv2.VideoWriter_fourcc(*"MJPG"), 5, (60, 40))
    for number in range(FRAMES):
        writer.write(scene(30 + number))
    writer.release()
    Path(f"{video}.avi").rename(video)
    frames = [image_bytes(scene(50 + number), number) for number in range(FRAMES)]
    bag = write_bag(tmp_path / "drive #1", StoragePlugin.MCAP, frames, ["/camera/image_raw"])
    return {"folder": root, "video": video, "recording": bag}


class Seen:
    """The frames that passed, each once, in order."""

    def __init__(self) -> None:
        self.frames: list[np.ndarray] = []

    def __call__(self, pixels: np.ndarray) -> None:
        if not any(np.array_equal(pixels, each) for each in self.frames):
            self.frames.append(pixels.copy())


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Notes each frame where a command hands it to its models."""
    noted = Seen()

    def noting(owner: Any, name: str, pixels: Callable[..., np.ndarray]) -> None:
        original = getattr(owner, name)

        def wrapper(*arguments: Any, **options: Any) -> Any:
            found = original(*arguments, **options)
            noted(pixels(found, *arguments))
            return found

        monkeypatch.setattr(owner, name, wrapper)

    noting(Detector, "detect", lambda _, detector, image, *rest: image)
    noting(fitting, "read_rgb", lambda found, *_: found)
    noting(dataset, "crop_to_aspect", lambda _, image, size: image)
    noting(Evaluation, "anomaly_map", lambda _, run, method, truth: truth.image)
    return noted


@pytest.mark.parametrize("kind", ["folder", "video", "recording"])
def test_every_command_gets_the_same_frames(
    tmp_path: Path,
    sources: dict[str, Path],
    seen: Seen,
    light_profile: str,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    monkeypatch.setitem(SIZE_PRESETS, "small", NARROW)
    monkeypatch.setattr(train, "_SAMPLES", 4)
    monkeypatch.setattr(measures, "_SAMPLING_STEPS", 2)
    monkeypatch.setenv("ANOMALY_DETECTOR_CACHE", str(tmp_path / "cache"))
    given = sources[kind]
    tally = Tally(stop=True)
    expected = [frame.pixels for frame in read_sources(find_sources([given]), tally)]
    assert len(expected) == FRAMES
    profile = ("--profile", light_profile, "--device", "cpu", "--offline")
    all_frames = ("--min-sharpness", 0, "--min-change", 0)
    commands: dict[str, tuple[object, ...]] = {
        "detect": (given, "--output", tmp_path / "found", *profile),
        "calibrate": (
            *("--data", given, "--output", tmp_path / "c.safetensors", "--holdout", 0),
            *(*all_frames, *profile),
        ),
        "train": (
            *("--data", given, "--output", tmp_path / "run", "--size", "16x24", "--steps", 1),
            *("--batch-size", 1, "--device", "cpu", *all_frames),
        ),
    }
    if kind == "folder":
        commands["evaluate"] = ("--root", given, "--method", "random", *profile)
    if kind == "recording":
        commands["bag"] = (given, "--output", tmp_path / "bag", "--outputs", "mask", *profile)
    for command, arguments in commands.items():
        seen.frames.clear()
        result = CliRunner().invoke(app, [command, *map(str, arguments)])
        assert result.exit_code == 0, (command, result.output, result.exception)
        assert len(seen.frames) == len(expected), command
        for found, frame in zip(seen.frames, expected, strict=True):
            np.testing.assert_array_equal(found, frame, err_msg=command)
        assert f"{FRAMES} read, {FRAMES} processed, 0 skipped" in result.stderr, command
    pytest.importorskip("rclpy", reason="no ROS 2 here: the demo's player is left out")
    from anomaly_detector_ros.demo.player import messages_of

    played = [image_to_rgb(each.message) for each in messages_of(find_sources([given]), tally)]
    for found, frame in zip(played, expected, strict=True):
        np.testing.assert_array_equal(found, frame)
