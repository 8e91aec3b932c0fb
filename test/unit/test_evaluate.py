"""The rows of the paper's table around a profile of random weights, on scenes drawn by the test."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from support.scenes import write_labelled_scenes

from anomaly_detector_ros.baselines.base import BASELINES
from anomaly_detector_ros.baselines.gmm import Gmm
from anomaly_detector_ros.baselines.nearest import Nearest
from anomaly_detector_ros.cli.main import main
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.evaluation import cached
from anomaly_detector_ros.evaluation.cache import Cache
from anomaly_detector_ros.evaluation.cached import CachedParts
from anomaly_detector_ros.evaluation.datasets.base import open_dataset
from anomaly_detector_ros.evaluation.run import Evaluation
from anomaly_detector_ros.evaluation.table.methods import (
    PRESETS,
    ROWS,
    TABLE1_ROWS,
    Preset,
    with_overrides,
)
from anomaly_detector_ros.features.base import FEATURES
from anomaly_detector_ros.profiles import Profile, load_profile

ROOT = Path(__file__).resolve().parents[2]
# What a machine without network and without fetched weights can run.
WEIGHTLESS = ("ssim", "gmm", "nearest", "flow", "mismatched", "forward", "no_segments", "rgb")
WEIGHTLESS += ("no_upsampler", "ours", "random", "perfect")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_labelled_scenes(tmp_path_factory.mktemp("scenes"), train=4, test=3)


@pytest.fixture
def make(scenes, light_profile, tmp_path):
    def evaluation(**options):
        import torch

        parts = CachedParts(Cache(tmp_path / "cache"), torch.device("cpu"), offline=True)
        overrides = {"segmenter": {"name": "superpixels", "count": 20}}
        overrides["sampler"] = {"guidance_scale": 1000.0}
        return Evaluation(
            load_profile(light_profile, overrides=overrides),
            parts,
            open_dataset("folder", scenes / "test"),
            open_dataset("folder", scenes / "train"),
            **options,
        )

    return evaluation


def test_every_row_that_needs_no_weights(make):
    seen = []
    evaluation = make(progress=lambda done, total, doing: seen.append((done, total, doing)))
    report = evaluation.run(WEIGHTLESS)
    assert list(report.metrics) == list(WEIGHTLESS)
    metrics = report.metrics
    share = metrics["random"].anomaly_share
    assert share == pytest.approx(25 * 30 / (59 * 90))
    assert metrics["random"].auc_pr == pytest.approx(share, abs=0.02)
    # Only the square changes in a perfect edit, and RGB features see that it does.
    assert metrics["perfect"].auc_pr > 0.8
    # Red is far from every colour of the training scenes.
    for name in ("gmm", "nearest", "flow"):
        assert metrics[name].auc_pr > 0.8, name
        assert metrics[name].per_class["anomaly"].flagged > 0.5
    assert metrics["ours"].auc_pr != metrics["mismatched"].auc_pr
    assert metrics["ours"].auc_pr != metrics["rgb"].auc_pr
    # Neither segments nor, in the same way, an upsampler that the profile does not have.
    assert metrics["ours"].auc_pr != metrics["no_segments"].auc_pr
    assert metrics["ours"].auc_pr == metrics["no_upsampler"].auc_pr
    assert {doing for _, _, doing in seen} >= {"anomaly maps", "pixel metrics"}
    maps = [(done, total) for done, total, doing in seen if doing == "anomaly maps"]
    assert maps == [(i + 1, 36) for i in range(36)]


def test_a_second_run_computes_nothing_and_agrees(make, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("computed again")

    first = make().run(("ours", "gmm", "perfect")).to_dict()
    for work in ("synthesize", "compare", "segment"):
        monkeypatch.setattr(Detector, work, refuse)
    assert make().run(("ours", "gmm", "perfect")).to_dict() == first


def test_an_interrupted_run_goes_on(make):
    class StoppedError(Exception):
        pass

    def stop(done, total, doing):
        if doing == "anomaly maps" and done == 4:
            raise StoppedError

    interrupted = make(progress=stop)
    with pytest.raises(StoppedError):
        interrupted.run(("ours", "perfect"))
    files = {file: file.stat().st_mtime_ns for file in interrupted.cache.directory.rglob("*.npz")}
    whole = make().run(("ours", "perfect"))
    assert whole.metrics["ours"].images == 3
    assert all(file.stat().st_mtime_ns == time for file, time in files.items())


def test_damaged_and_foreign_files_of_the_cache_are_computed_anew(tmp_path):
    cache, calls = Cache(tmp_path), []

    def compute():
        calls.append(1)
        return np.arange(3)

    file = cache.path("maps", ["key"], ".npz")
    for content in (None, b"", b"PK\x03\x04 cut off", b"no archive at all"):
        if content is not None:
            file.write_bytes(content)
        assert np.array_equal(cache.array("maps", ["key"], compute), np.arange(3))
    assert len(calls) == 4
    assert np.array_equal(cache.array("maps", ["key"], compute), np.arange(3))
    assert len(calls) == 4


def test_a_key_follows_what_lies_where_settings_name_a_path(tmp_path):
    file, other = tmp_path / "dino.pth", tmp_path / "other.pth"
    parts = CachedParts(Cache(tmp_path / "cache"), torch.device("cpu"), offline=True)

    def key(path):
        return parts.part_key(FEATURES.read({"name": "dino", "weights": str(path)}))

    file.write_bytes(b"1")
    other.write_bytes(b"1")
    assert key(file) == key(other)
    other.write_bytes(b"2")
    parts = CachedParts(Cache(tmp_path / "cache"), torch.device("cpu"), offline=True)
    assert key(file) != key(other)


def test_a_row_without_weights_is_a_line_of_the_table_or_an_error(make):
    evaluation = make()
    report = evaluation.run(("random", "resnet"), strict=False)
    assert list(report.metrics) == ["random"]
    assert "resnet" in report.not_run["resnet"]
    assert "Not run: ResNet features: " in report.to_markdown()
    with pytest.raises(UserError, match="resnet"):
        make().run(("resnet",))
    with pytest.raises(UserError, match="unknown method 'psychic': choose one of ssim, gmm"):
        make().run(("psychic",))


def test_baselines_need_nominal_images(make):
    evaluation = make()
    evaluation.nominal = None
    with pytest.raises(UserError, match="gmm is fitted on nominal images: give --train-root"):
        evaluation.run(("gmm",))


def test_ours_minus_each_row_is_on_the_same_resamples(make):
    evaluation = make()
    report = evaluation.run(["ours", "nearest", "rgb"])
    assert set(report.ours_minus) == {"nearest", "rgb"}
    ours, nearest = (evaluation.measurements[name] for name in ("ours", "nearest"))
    drawn = ours.resampled["auc_pr"] - nearest.resampled["auc_pr"]
    low, high = np.quantile(drawn, (0.025, 0.975))
    assert report.ours_minus["nearest"]["auc_pr"] == pytest.approx((low, high))
    assert f"| {low:.3f} to {high:.3f} |" in report.to_markdown()
    rows = {row["name"]: row for row in report.to_dict()["rows"]}
    assert rows["nearest"]["ours_minus"]["auc_pr"] == pytest.approx([low, high])
    assert rows["ours"]["ours_minus"] == {}
    assert not make().run(["nearest"]).ours_minus


def test_the_authors_baselines_look_at_every_pixel_of_the_whole_image():
    settings = PRESETS["paper"].features(load_profile("paper_rugd"))
    network = {"name": "maskclip", "as_in_featup": True, "dtype": "auto"}
    assert FEATURES.read(settings) == FEATURES.read(
        {
            "name": "upsampled",
            "network": network,
            "input_size": [546, 686],
            "weights": "featup_maskclip_jbu",
        }
    )
    made = {name: BASELINES.read(of) for name, of in PRESETS["paper"].settings.items()}
    assert made["nearest"] == Nearest(metric="l2", k=1)
    assert made["gmm"] == Gmm(20, "full", None, whiten=False, max_iterations=50)
    flow = made["flow"]
    assert (flow.blocks, flow.layers, flow.epochs, flow.learning_rate) == (10, 10, 2, 1e-6)


def test_a_preset_says_how_baselines_are_made(make, monkeypatch):
    small = {"name": "rgb", "input_size": (8, 12)}
    preset = Preset({"nearest": {"name": "nearest", "metric": "l2"}}, lambda profile: small)
    monkeypatch.setitem(PRESETS, "small", preset)
    evaluation = make(baselines="small")
    report = evaluation.run(["nearest", "gmm"])
    assert report.to_dict()["baselines"] == "small"
    nearest, gmm = evaluation.methods
    assert nearest.baseline.method == Nearest(metric="l2")
    assert gmm.baseline.method == Gmm()
    assert nearest.features.extract(torch.zeros(1, 3, 40, 60)).shape == (1, 3, 8, 12)
    with pytest.raises(UserError, match="unknown baselines 'mine': choose one of ours, paper"):
        make(baselines="mine").run(["nearest"])


def test_another_data_set_fits_baselines_but_weighs_no_classes(make, scenes, tmp_path):
    same = make()
    same.run(("gmm",))
    assert same.measurements["gmm"].class_frequencies == {0: 1.0, 1: 0.0, 255: 0.0}
    (tmp_path / "ycor").mkdir()
    for kind, source in (("images", "images"), ("labels", "masks")):
        shutil.copytree(scenes / "train" / source, tmp_path / "ycor" / kind)
    for file in (tmp_path / "ycor" / "labels").iterdir():
        cv2.imwrite(str(file), np.full((60, 90), 4, np.uint8))
    evaluation = make()
    evaluation.nominal = open_dataset("ycor", tmp_path / "ycor")
    assert evaluation.run(("gmm",)).metrics["gmm"].auc_pr > 0.8
    assert evaluation.measurements["gmm"].class_frequencies is None


def test_rows_change_what_they_name_alone():
    profile = Profile(
        "p",
        denoiser={"model": "m", "size": [8, 8]},
        sampler={"name": "few_step", "guidance_scale": 2e4},
        features={"name": "maskclip", "mode": "tiles", "tile_size": 224, "dtype": "auto"},
        upsampler={"name": "featup"},
        segmenter={"name": "sam"},
    )
    forward = with_overrides(profile, ROWS["forward"].overrides)
    assert forward.sampler["guidance"] == "forward"
    assert forward.sampler["guidance_scale"] == pytest.approx(2e5)
    assert forward.features == profile.features
    vit = with_overrides(profile, ROWS["vit"].overrides)
    assert vit.features == {**profile.features, "name": "vit"}
    whole = replace(profile, features={"name": "dinov2_vits14", "input_size": [266, 504]})
    assert with_overrides(whole, ROWS["vit"].overrides).features == {
        "name": "vit", "input_size": 266
    }  # fmt: skip
    assert with_overrides(profile, ROWS["no_upsampler"].overrides).upsampler["name"] == "bilinear"
    assert len(TABLE1_ROWS) == 17
    assert sum(bool(row.published) for row in ROWS.values()) == 15


def test_published_numbers_stand_beside_the_columns_that_mean_the_same(make):
    report = make().run(("random", "rgb"))
    assert "published" not in report.to_markdown()
    table, note = replace(report, dataset="rugd").to_markdown().split("\n\n")
    assert "weighted columns alone" in note
    head, _, *rows = table.splitlines()
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    assert columns[-4:] == [
        "weighted AUC-PR", "published weighted AUC-PR", "weighted F1*", "published weighted F1*"
    ]  # fmt: skip
    cells = {row.split("|")[1].strip(): row.strip("|").split("|") for row in rows}
    assert all(len(row) == len(columns) for row in cells.values())
    rgb, random = cells["RGB in place of features"], cells["Random scores"]
    assert [rgb[i].strip() for i in (-3, -1)] == ["0.302", "0.591"]
    assert [random[i].strip() for i in (-3, -1)] == ["", ""]
    found = report.metrics["rgb"]
    ours = (found.envelope_auc_pr, found.weighted_auc_pr, found.weighted_f1_star)
    assert [rgb[i].strip() for i in (-5, -4, -2)] == [f"{value:.3f}" for value in ours]


def test_the_command_writes_table_curves_and_gallery(scenes, light_profile, tmp_path, capsys):
    output = tmp_path / "out" / "results.json"
    arguments = ["evaluate", "--dataset", "folder", "--root", str(scenes / "test")]
    arguments += ["--profile", light_profile, "--cache", str(tmp_path / "cache"), "--offline"]
    with pytest.raises(SystemExit) as ended:
        main(
            [*arguments, "--table1", "--train-root", str(scenes / "train"), "--output", str(output)]
        )
    assert ended.value.code == 0
    written = {file.name for file in output.parent.iterdir()}
    assert written == {
        "results.json", "results.md", "results_curves.png", "results_gallery.jpg", "results_page"
    }  # fmt: skip
    results = json.loads(output.read_text())
    ran = {row["name"] for row in results["rows"]}
    assert ran >= set(WEIGHTLESS)
    assert ran | set(results["not_run"]) == set(TABLE1_ROWS)
    assert results["train_images"] == 4
    assert "torch" in results["versions"]
    assert "Nearest neighbour" in (output.parent / "results.md").read_text()
    sheet = cv2.imread(str(output.parent / "results_gallery.jpg"))
    assert sheet.shape[1] >= 8 * 256


NOTING = """
import sys
from accelerate import PartialState
from anomaly_detector_ros.cli.main import main
from anomaly_detector_ros.evaluation.table.methods import Synthesis

log, *arguments = sys.argv[1:]
alone = Synthesis.anomaly_map

def noted(self, truth):
    with open(f"{log}{PartialState().process_index}", "a") as file:
        file.write(truth.name)
    return alone(self, truth)

Synthesis.anomaly_map = noted
main(arguments)
"""


@pytest.mark.slow
def test_two_processes_share_the_maps_and_agree_with_one(scenes, light_profile, tmp_path):
    script = tmp_path / "noting.py"
    script.write_text(NOTING)
    options = ["evaluate", "--dataset", "folder", "--root", str(scenes / "test"), "--json"]
    options += ["--profile", light_profile, "--offline", "--method", "ours", "--method", "perfect"]
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    found = []
    for name, launcher in (("two", two), ("one", [])):
        command = [sys.executable, *launcher, str(script), str(tmp_path / f"{name}_"), *options]
        result = subprocess.run(
            [*command, "--cache", str(tmp_path / name)],
            capture_output=True, text=True, timeout=300, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        found.append(json.loads(result.stdout[result.stdout.index("{") :]))
    for together, single in zip(found[0]["rows"], found[1]["rows"], strict=True):
        assert together["name"] == single["name"]
        assert together["auc_pr"] == pytest.approx(single["auc_pr"], abs=1e-5)
        assert together["images"] == 3
    shares = {file.name: file.read_text() for file in tmp_path.glob("*_?")}
    assert shares == {"two_0": "02", "two_1": "1", "one_0": "012"}


def test_images_are_hashed_once_for_all_methods(make, monkeypatch):
    hashed = []
    alone = cached.array_digest

    def noted(array):
        hashed.append(array.shape)
        return alone(array)

    monkeypatch.setattr(cached, "array_digest", noted)
    evaluation = make()
    evaluation.measure(evaluation.build(("random", "ssim", "rgb")))
    truth = evaluation.data[0]
    # Pictures and labels in each of three passes, whatever the number of methods.
    assert hashed.count(truth.image.shape) == 3 * len(evaluation.data)
    assert hashed.count(truth.labels.shape) == 3 * len(evaluation.data)
