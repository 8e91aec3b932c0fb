"""`anomaly-detector calibrate` from pictures to a file that a profile uses."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from anomaly_detector_ros.calibration.calibration import load_calibration
from anomaly_detector_ros.cli.main import app
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.errors import UserError


def run(*arguments: object) -> Result:
    options = [str(argument) for argument in arguments]
    return CliRunner().invoke(app, ["calibrate", *options, "--device", "cpu", "--offline"])


def refusal(*arguments: object) -> str:
    result = run(*arguments)
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


def draw(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(5)
    for index in range(count):
        coarse = rng.normal(110, 25, (6, 9, 3)).clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{index}.png"), cv2.resize(coarse, (60, 40)))


@pytest.fixture(scope="module")
def nominal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "set"
    draw(root / "images", 12)
    (root / "masks").mkdir()
    for index in range(12):
        mask = np.zeros((40, 60), np.uint8)
        mask[:5, :5] = 1 if index < 2 else 0
        cv2.imwrite(str(root / "masks" / f"{index}.png"), mask)
    return root


@pytest.fixture
def whitened(light_profile: str, tmp_path: Path) -> Path:
    """A profile with a whitened distance, and a calibration that is not there yet."""
    (profile,) = yaml.safe_load(Path(light_profile).read_text()).values()
    profile |= {"distance": {"name": "whitened"}, "calibration": {"file": "c.safetensors"}}
    file = tmp_path / "whitened.yaml"
    file.write_text(yaml.safe_dump({"whitened_test": profile}))
    return file


def test_from_pictures_to_a_calibrated_detector(nominal: Path, whitened: Path, tmp_path: Path):
    with pytest.raises(UserError, match="cannot read calibration"):
        Detector.from_profile(str(whitened), device="cpu", offline=True)
    output = tmp_path / "c.safetensors"
    result = run("--data", nominal, "--output", output, "--profile", whitened, "--json")
    assert result.exception is None, result.output
    summary = json.loads(result.stdout)
    assert (summary["images"], summary["held_out_images"]) == (6, 6)
    assert summary["pixels"] == 6 * 40 * 60
    assert summary["distance"] == "whitened"
    rates = summary["false_positive_rates"]
    assert [rate["asked"] for rate in rates] == [0.05, 0.02, 0.01, 0.005, 0.001]
    assert 0 < rates[0]["low"] <= rates[0]["measured"] <= rates[0]["high"] < 0.2
    assert "6 images to fit on" in result.stderr
    detector = Detector.from_profile(str(whitened), device="cpu", offline=True)
    assert detector.calibrated
    found = detector.detect(cv2.imread(str(nominal / "images" / "0.png")))
    assert np.median(found.heatmap) == pytest.approx(0.5, abs=0.3)


def test_the_table_is_printed(nominal: Path, light_profile: str, tmp_path: Path):
    output = tmp_path / "new" / "c.safetensors"
    result = run(
        *("--data", nominal / "images", "--output", output, "--profile", light_profile),
        *("--count", 6, "--holdout", 0.3),
    )
    assert result.exception is None, result.output
    assert "fitted on 4 images" in result.stdout
    assert "2 images held out" in result.stdout
    assert "0.95" in result.stdout
    assert f"saved: {output}" in result.stdout
    assert output.is_file()


def test_everything_may_be_fitted_on(
    nominal: Path, light_profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ANOMALY_DETECTOR_CACHE", str(tmp_path / "cache"))
    result = run(
        *("--data", nominal, "--dataset", "folder", "--output", tmp_path / "c.safetensors"),
        *("--profile", light_profile, "--holdout", 0, "--json"),
    )
    assert result.exception is None, result.output
    summary = json.loads(result.stdout)
    # Two of the twelve have an anomaly.
    assert (summary["images"], summary["held_out_images"]) == (10, 0)
    assert summary["false_positive_rates"] == []


def test_bad_requests_are_refused_in_one_line(nominal: Path, light_profile: str, tmp_path: Path):
    options = ("--output", tmp_path / "c.safetensors", "--profile", light_profile)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no images" in refusal("--data", empty, *options)
    assert "does not exist" in refusal("--data", tmp_path / "absent", *options)
    one = nominal / "images" / "0.png"
    assert "too few" in refusal("--data", one, *options)
    assert "--dataset" in refusal("--data", nominal, "--split", "train", *options)
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(one.read_bytes()[:100])
    assert "damaged.png" in refusal(
        "--data", one, "--data", damaged, "--on-error", "stop", *options
    )
    assert not (tmp_path / "c.safetensors").exists()


def test_cameras_are_added_to_a_file(nominal: Path, whitened: Path, tmp_path: Path):
    draw(tmp_path / "rear", 8)
    output = tmp_path / "c.safetensors"
    options = ("--output", output, "--profile", whitened, "--json")
    for data, camera in ((nominal, "front"), (tmp_path / "rear", "rear")):
        result = run("--data", data, "--camera", camera, *options)
        assert result.exception is None, result.output
    summary = json.loads(result.stdout)
    assert (summary["camera"], summary["cameras"]) == ("rear", ["front", "rear"])
    assert (summary["images"], summary["held_out_images"]) == (4, 4)
    assert summary["false_positive_rates"][0]["measured"] < 0.3
    calibration = load_calibration(output)
    assert calibration.cameras["front"].images == calibration.nominal().images == 6
    assert calibration.nominal("rear").images == 4
    before = output.read_bytes()
    others = ("--output", output, "--profile", replaced(whitened, tmp_path))
    assert "sampler.steps" in refusal("--data", nominal, "--camera", "left", *others)
    assert output.read_bytes() == before


def replaced(profile: Path, folder: Path) -> Path:
    """The profile with another number of steps."""
    (settings,) = yaml.safe_load(profile.read_text()).values()
    settings["sampler"]["steps"] = 3
    file = folder / "other.yaml"
    file.write_text(yaml.safe_dump({"other": settings}))
    return file


def test_a_second_calibration_shares_the_distance_of_the_first(
    nominal: Path, whitened: Path, tmp_path: Path
):
    first, second = tmp_path / "c.safetensors", tmp_path / "second.safetensors"
    plain = ("--data", nominal, "--profile", whitened, "--holdout", 0, "--count", 3)
    for output, memory in ((first, ()), (second, ("--memory", first))):
        result = run(*plain, *memory, "--output", output)
        assert result.exception is None, result.output
    assert load_calibration(second).shared == "c.safetensors"
    assert second.stat().st_size < first.stat().st_size
    elsewhere = tmp_path / "elsewhere" / "c.safetensors"
    assert "in one folder" in refusal(*plain, "--memory", first, "--output", elsewhere)


@pytest.mark.parametrize("given", ["film.avi", "images", "both"])
def test_frames_of_a_video_are_a_stream(
    given: str, nominal: Path, light_profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    film = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (60, 40))
    for number in range(4):
        film.write(np.full((40, 60, 3), 60 * number, np.uint8))
    film.release()
    data = {"film.avi": [tmp_path / "film.avi"], "images": [nominal / "images"]}
    paths = data.get(given, [*data["film.avi"], *data["images"]])

    def fit(*_: object, stream: bool, **__: object) -> None:
        raise UserError(f"stream {stream}")

    monkeypatch.setattr("anomaly_detector_ros.fitting.fit_calibration", fit)
    options = [part for path in paths for part in ("--data", path)]
    # A picture may be of anywhere.
    expected = f"stream {given == 'film.avi'}"
    output = tmp_path / "c.safetensors"
    assert refusal(*options, "--output", output, "--profile", light_profile) == expected
