"""`evaluate --edits` around a profile of random weights, on scenes drawn by the test."""

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from support.scenes import write_labelled_scenes
from typer.testing import CliRunner

from anomaly_detector_ros.cli.main import app
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.evaluation.cache import Cache
from anomaly_detector_ros.evaluation.cached import CachedParts
from anomaly_detector_ros.evaluation.datasets.base import open_dataset
from anomaly_detector_ros.evaluation.edits import EditEvaluation
from anomaly_detector_ros.evaluation.run import Evaluation
from anomaly_detector_ros.fitting import fit_calibration
from anomaly_detector_ros.profiles import load_profile


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = write_labelled_scenes(tmp_path_factory.mktemp("scenes"), train=6, test=3)
    for number in (4, 5):  # held out
        for kind in ("images", "masks"):
            (root / "val" / kind).mkdir(parents=True, exist_ok=True)
            (root / "train" / kind / f"{number}.png").rename(root / "val" / kind / f"{number}.png")
    return root


@pytest.fixture
def edits(scenes, light_profile, tmp_path):
    parts = CachedParts(Cache(tmp_path / "cache"), torch.device("cpu"), offline=True)
    evaluation = Evaluation(
        load_profile(light_profile),
        parts,
        open_dataset("folder", scenes / "test"),
        open_dataset("folder", scenes / "train"),
    )
    return EditEvaluation(evaluation, sorted((scenes / "val" / "images").iterdir()))


def test_edits_that_paint_anomalies_over_are_seen_to(edits, monkeypatch):
    """The real edits come of random weights; these are the frames with grass for the square."""

    def painted(detector, image):
        original = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        edit = original.clone()
        red = image[..., 0] > 200
        edit[0, :, red] = original[0, :, :19].flatten(1)[:, : red.sum()]
        return original, edit

    monkeypatch.setattr(edits.parts, "edits", painted)
    found = edits.run().quality
    assert (found.nominal_frames, found.labelled_frames, found.anomalies) == (2, 3, 3)
    assert (found.removal, found.unedited_nominal) == (1, 0)
    assert found.nominal_change == pytest.approx(0, abs=1e-6)
    assert found.beside_change < 0.1 * found.anomaly_change  # of patches on the square's border
    assert (found.sharpness, found.frame_sharpness) == pytest.approx((1, 1))
    assert found.anomaly_change > 0.1
    assert found.contrast > 1000
    assert abs(found.kid) < 1e-6
    assert abs(found.kid_anomalous) < 1e-3 < found.kid_unedited


def test_a_second_run_edits_nothing_and_agrees(edits, monkeypatch):
    first = edits.run().to_dict()

    def refuse(*arguments):
        raise AssertionError("edited again")

    monkeypatch.setattr(edits.detector, "synthesize", refuse)
    assert edits.run().to_dict() == first


def test_the_command_writes_numbers_a_table_and_a_sheet(scenes, light_profile, tmp_path):
    output = tmp_path / "out" / "edits.json"
    arguments = [
        "evaluate", "--edits", "--root", scenes / "test", "--train-root", scenes / "train",
        "--held-out", scenes / "val", "--profile", light_profile, "--device", "cpu",
        "--cache", tmp_path / "cache", "--output", output, "--offline",
    ]  # fmt: skip
    shown = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert shown.exit_code == 0, shown.output
    found = json.loads(output.read_text())
    assert json.loads(shown.stdout) == found
    assert found["edits"]["nominal_frames"] == 2
    low, high = found["edits"]["intervals"]["sharpness"]
    assert low <= found["edits"]["sharpness"] <= high
    table = output.with_suffix(".md").read_text()
    assert f"| {found['edits']['sharpness']:.3f} |" in table
    sheet = cv2.imread(str(output.with_name("edits_edits.jpg")))
    assert sheet.shape[1] > 1000
    assert np.unique(sheet.reshape(-1, 3), axis=0).shape[0] > 1000
    printed = CliRunner().invoke(app, list(map(str, arguments)))
    assert "sharpness" in printed.stdout
    assert "removal" in printed.stdout


def test_bad_pictures_are_counted_and_left_out(scenes, light_profile, tmp_path, monkeypatch):
    held_out = tmp_path / "held"
    shutil.copytree(scenes / "val" / "images", held_out)
    (held_out / "broken.png").write_bytes(b"no picture")
    synthesize, calls = Detector.synthesize, []

    def fails_once(self, images):
        calls.append(len(images))
        if len(calls) == 4:  # after the two that are held out, the second labelled one
            raise RuntimeError("out of everything")
        return synthesize(self, images)

    monkeypatch.setattr(Detector, "synthesize", fails_once)
    arguments = [
        "evaluate", "--edits", "--root", scenes / "test", "--train-root", scenes / "train",
        "--held-out", held_out, "--profile", light_profile, "--device", "cpu", "--offline",
        "--cache", tmp_path / "cache", "--json",
    ]  # fmt: skip
    shown = CliRunner().invoke(app, list(map(str, arguments)))
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)["edits"]
    assert (found["nominal_frames"], found["labelled_frames"]) == (2, 2)
    assert "1 unreadable" in shown.stderr
    assert "1 failed in the models" in shown.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--edits"], "--edits and --held-out go together"),
        (["--held-out", "val"], "--edits and --held-out go together"),
        (
            ["--edits", "--held-out", "val", "--table1"],
            "--edits measures the profile's edits alone",
        ),
        (["--edits", "--held-out", "{val}"], "give --train-root"),
    ],
)
def test_what_edits_cannot_be_measured_with_is_said(options, message, scenes, light_profile):
    given = [option.format(val=scenes / "val") for option in options]
    arguments = ["evaluate", "--root", str(scenes / "test"), "--profile", light_profile, *given]
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu", "--offline"])
    assert message in str(result.exception)


def test_local_edits_are_those_of_the_profile(scenes, light_profile, tmp_path):
    overrides = {"distance": {"name": "novelty", "memory": 50, "edit_to": 0.001}}
    profile = load_profile(light_profile, overrides=overrides)
    parts = CachedParts(Cache(tmp_path / "cache"), torch.device("cpu"), offline=True)
    nominal = sorted((scenes / "train" / "images").iterdir())
    fit_calibration(profile, parts, nominal).save(tmp_path / "calibration.safetensors")
    profile = replace(profile, calibration={"file": str(tmp_path / "calibration.safetensors")})
    data = open_dataset("folder", scenes / "test")
    evaluation = Evaluation(profile, parts, data, open_dataset("folder", scenes / "train"))
    edits = EditEvaluation(evaluation, sorted((scenes / "val" / "images").iterdir()))
    image = data[0].image
    _, expected = Detector.from_parts(profile, parts).synthesize([image])
    _, found = parts.edits(edits.detector, image)
    assert torch.equal(found, expected[0])
    plain = replace(profile, distance={"name": "cosine"}, calibration={})
    _, everywhere = Detector.from_parts(plain, parts).synthesize([image])
    assert not torch.allclose(found, everywhere[0], atol=1e-3)
