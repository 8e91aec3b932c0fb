"""The reverse diffusion as a file: which steps it holds, and what can be read back."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image as PilImage
from support.tiny import save_tiny_unet, write_profile

from anomaly_detector_ros.cli.main import main
from anomaly_detector_ros.cli.results import SUFFIXES
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.imaging.animation import encode_animation, side_by_side
from anomaly_detector_ros.runtime.tensors import to_tensor
from anomaly_detector_ros.synthesis.autoencoder import Autoencoder
from anomaly_detector_ros.synthesis.editor import Editor, read_edit_settings
from anomaly_detector_ros.synthesis.gaussian import GaussianDenoiser
from anomaly_detector_ros.synthesis.recording import Recorder
from anomaly_detector_ros.synthesis.samplers import SamplerStep
from anomaly_detector_ros.synthesis.schedule import Schedule
from anomaly_detector_ros.synthesis.spaces import PIXELS, LatentSpace


def record(recorder: Recorder, count: int) -> list[int]:
    """The value of each kept picture; a sample before step i holds i."""
    for index in range(count):
        before, after = (torch.full((2, 3, 4, 4), i / 127.5 - 1) for i in (index, index + 1))
        recorder(SamplerStep(index, count, count - index, before, after, after))
    return [int(picture[0, 0, 0]) for picture in recorder.pictures]


def test_all_of_few_steps_are_kept_and_some_of_many() -> None:
    assert record(Recorder(PIXELS), 1) == [0, 1]
    assert record(Recorder(PIXELS, 5), 4) == [0, 1, 2, 3, 4]
    assert record(Recorder(PIXELS, 5), 200) == [0, 50, 100, 150, 200]
    kept = record(Recorder(PIXELS, 50), 120)
    assert (len(kept), kept[0], kept[-1]) == (50, 0, 120)


def test_latents_are_decoded_at_full_size() -> None:
    torch.manual_seed(0)
    space = LatentSpace(Autoencoder(4, (8, 8, 8), (1, 1, 1), (1, 1, 1)).eval())
    denoiser = GaussianDenoiser(Schedule.named("cosine", 50), 0.0, 0.5)
    denoiser.space = space
    settings = read_edit_settings({"name": "ddim", "timesteps": 6, "num_edits": 2})
    recorder = Recorder(space)
    image = to_tensor(np.full((1, 32, 48, 3), 90, np.uint8))
    editor = Editor(settings, (32, 48), torch.device("cpu"))
    _, edits = editor.edit(denoiser, image, callback=recorder)
    assert len(recorder.pictures) == 7
    assert {picture.shape for picture in recorder.pictures} == {(32, 48, 3)}
    last = to_tensor(recorder.pictures[-1][None])
    torch.testing.assert_close(last, edits[0, :1], atol=1 / 127, rtol=0)


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    ramp = np.linspace(0, 255, 48).astype(np.uint8)[None, :, None].repeat(32, 0).repeat(3, 2)
    return [side_by_side(ramp, np.full((32, 48, 3), 20 * i, np.uint8)) for i in range(6)]


def test_gif(pictures: list[np.ndarray]) -> None:
    gif = PilImage.open(io.BytesIO(encode_animation(pictures, "gif")))
    assert (gif.n_frames, gif.size, gif.info["loop"]) == (6, (96, 32), 0)
    gif.seek(3)
    assert gif.info["duration"] == 80
    found = np.asarray(gif.convert("RGB"))
    assert np.abs(found.astype(int) - pictures[3]).max() < 16
    gif.seek(5)
    assert gif.info["duration"] == 2000


def test_mp4(pictures: list[np.ndarray], tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(encode_animation(pictures, "mp4"))
    video = cv2.VideoCapture(str(tmp_path / "a.mp4"))
    frames = []
    while (read := video.read())[0]:
        frames.append(read[1][..., ::-1])
    assert len(frames) == 6 + 25
    assert np.abs(frames[3].astype(int) - pictures[3]).mean() < 4


@pytest.mark.parametrize("kind", ["gif", "mp4"])
def test_detect_records(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_tiny_unet(tmp_path / "model")
    profile = write_profile(tmp_path / "tiny.yaml", model)
    cv2.imwrite(str(tmp_path / "scene.png"), np.full((40, 60, 3), 90, np.uint8))
    output = tmp_path / "out"
    arguments = [
        "detect", tmp_path / "scene.png", "--output", output, "--record-diffusion", kind,
        "--profile", profile, "--device", "cpu", "--offline",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    assert ended.value.code == 0
    for suffix in SUFFIXES:
        (output / f"scene_{suffix}").unlink()
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    assert ended.value.code == 1
    assert f"scene_diffusion.{kind}' exists already" in capsys.readouterr().err
    video = cv2.VideoCapture(str(output / f"scene_diffusion.{kind}"))
    assert video.read()[1].shape == (16, 48, 3)


def test_recording_changes_nothing(light_profile: str) -> None:
    detector = Detector.from_profile(light_profile, device="cpu", offline=True)
    image = np.full((16, 24, 3), (60, 110, 80), np.uint8)
    recorder = Recorder(PIXELS)
    found = detector.detect(image, callback=recorder)
    assert np.array_equal(found.scores, detector.detect(image).scores)
    assert len(recorder.pictures) > 1
