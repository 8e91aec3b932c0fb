"""Sweeps: variants from YAML, passes counted, tables and plots, on networks of random weights."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from support.scenes import write_labelled_scenes

from anomaly_detector_ros.benchmarking.timing import Passes, counting
from anomaly_detector_ros.cli.main import main
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.distances.base import DISTANCES
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.evaluation.cache import Cache
from anomaly_detector_ros.evaluation.cached import CachedParts
from anomaly_detector_ros.evaluation.datasets.base import open_dataset
from anomaly_detector_ros.evaluation.fits import Fits
from anomaly_detector_ros.evaluation.run import Evaluation
from anomaly_detector_ros.evaluation.sweep.plots import pushed_apart
from anomaly_detector_ros.evaluation.sweep.run import (
    cost_of,
    count_passes,
    pareto_optimal,
    run_sweep,
)
from anomaly_detector_ros.evaluation.sweep.variants import UNCHANGED, load_variants
from anomaly_detector_ros.profiles import load_profile
from anomaly_detector_ros.synthesis.editor import read_edit_settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_labelled_scenes(tmp_path_factory.mktemp("scenes"), train=3, test=5)


@pytest.fixture
def listed(tmp_path, light_profile):
    """Writes grids to a file and reads them as variants of the light profile."""

    def load(*grids, content=None):
        file = tmp_path / "sweep.yaml"
        shown = {"grids": [*grids]} if content is None else content
        file.write_text(yaml.safe_dump(shown, sort_keys=False))
        return load_variants(file, light_profile)

    return load


@pytest.fixture
def make(scenes, light_profile, tmp_path):
    def evaluation(**options):
        return Evaluation(
            load_profile(light_profile),
            CachedParts(Cache(tmp_path / "cache"), torch.device("cpu"), offline=True),
            open_dataset("folder", scenes / "test"),
            open_dataset("folder", scenes / "train"),
            **options,
        )

    return evaluation


def detector(profile, tmp_path):
    parts = CachedParts(Cache(tmp_path / "cache"), torch.device("cpu"), offline=True)
    return Detector.from_parts(profile, parts), parts


def test_a_grid_stands_for_all_combinations_each_once(listed):
    variants = listed(
        {"sampler.steps": [1, 2], "sampler.num_edits": [1, 3]},
        {"sampler.steps": 1, "segmenter.name": "superpixels"},
        {"sampler.steps": 1, "sampler.num_edits": 3},
        {"denoiser.size": [[16, 24], [24, 32]]},
    )
    assert [v.name for v in variants] == [
        UNCHANGED, "steps 1, num_edits 1", "steps 1, num_edits 3", "steps 2, num_edits 3",
        "steps 1, segmenter superpixels", "size 24x32",
    ]  # fmt: skip
    assert variants[2].profile.sampler["steps"] == 1
    assert variants[2].profile.sampler["noise_level"] == 0.5  # the profile's own
    assert variants[4].profile.segmenter == {"name": "superpixels"}
    assert variants[5].profile.denoiser["size"] == [24, 32]
    assert variants[0].changes == {}


def test_settings_of_one_name_are_told_apart_by_their_part(listed):
    random = {"features.name": "dino", "features.weights": "random"}
    variants = listed({"sampler.seed": 1, "features.seed": 2, **random})
    assert variants[1].name.startswith("sampler seed 1, features seed 2, ")


def test_models_of_one_directory_name_are_told_apart_by_their_path(listed, tiny_model, tmp_path):
    runs = [tmp_path / run / "model" for run in ("a", "b")]
    for run in runs:
        shutil.copytree(tiny_model, run)
    variants = listed({"denoiser.model": [str(tiny_model), *map(str, runs)]})
    names = [v.name for v in variants[1:]]
    assert names == ["model a/model", "model b/model"]
    assert [v.profile.name.split(": ")[1] for v in variants[1:]] == names


def test_values_that_look_alike_when_rounded_are_told_apart(listed):
    variants = listed({"sampler.noise_level": [0.12345678, 0.12345679, 0.2]})
    assert [v.name for v in variants[1:]] == [
        "noise_level 0.12345678", "noise_level 0.12345679", "noise_level 0.2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"steps": [1, 2]}, "write PART.SETTING, as in sampler.steps"),
        ({"sampla.steps": [1]}, "unknown part 'sampla'"),
        ({"denoiser.size": [16, 24]}, "size is 16: it must be a valid tuple"),
        ({"denoiser.model": "/nowhere/step_*"}, "matches no directory"),
    ],
)
def test_grids_that_cannot_be_are_refused(listed, grid, message):
    with pytest.raises(UserError, match=message):
        listed(grid)


@pytest.mark.parametrize("content", [[], {}, {"grids": {}}, {"grids": [1]}, {"grids": [], "x": 1}])
def test_other_files_are_refused(listed, content):
    with pytest.raises(UserError, match="is not a sweep: expected 'grids"):
        listed(content=content)


@pytest.mark.parametrize(("name", "count"), [("edit", 14), ("analysis", 11)])
def test_the_sweeps_of_the_documentation_vary_the_default_profile(name, count):
    variants = load_variants(ROOT / "docs" / "sweeps" / f"{name}.yaml", "embedded")
    assert len(variants) == count
    for variant in variants:
        read_edit_settings(variant.profile.sampler)
        DISTANCES.read(variant.profile.distance)


def test_a_missing_file_is_refused(tmp_path, light_profile):
    with pytest.raises(UserError, match=r"cannot read the sweep '.*absent.yaml'"):
        load_variants(tmp_path / "absent.yaml", light_profile)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"steps": 3, "num_edits": 2}, Passes(6, 0)),
        ({"steps": 3, "num_edits": 2, "jacobian": "exact", "guidance_scale": 1e4}, Passes(6, 6)),
        ({"steps": 2, "guidance": "forward", "guidance_scale": 1e4}, Passes(2, 0)),
        # Of 4 steps from so low a level two begin at the same timestep.
        ({"steps": 4, "noise_level": 0.003}, None),
    ],
)
def test_passes_are_those_of_the_real_network(light_profile, tmp_path, settings, expected):
    found, parts = detector(load_profile(light_profile, overrides={"sampler": settings}), tmp_path)
    with counting(found) as real:
        found.synthesize([np.full((30, 40, 3), 90, np.uint8)])
    assert count_passes(found) == real
    if expected:
        assert real == expected
    cost = cost_of(found, parts)
    assert cost.passes == real.forward + 2 * real.backward
    assert cost.multiply_adds > 0


def test_multiply_adds_grow_with_passes_and_size(light_profile, tmp_path):
    def cost(**overrides):
        return cost_of(*detector(load_profile(light_profile, overrides=overrides), tmp_path))

    one = cost(sampler={"steps": 1})
    assert cost(sampler={"steps": 3}).multiply_adds == pytest.approx(3 * one.multiply_adds)
    larger = cost(sampler={"steps": 1}, denoiser={"size": [32, 48]})
    assert larger.multiply_adds > 3.5 * one.multiply_adds
    exact = cost(sampler={"steps": 1, "jacobian": "exact", "guidance_scale": 1e4})
    assert exact.passes == 3
    assert 1.5 < exact.multiply_adds / one.multiply_adds < 3


def test_pareto_optimal_points():
    costs, qualities = [1, 2, 2, 4, 8, 8, 1], [0.1, 0.3, 0.2, 0.3, 0.5, 0.5, np.nan]
    assert pareto_optimal(costs, qualities) == [True, True, False, False, True, True, False]


def test_numbers_of_close_points_are_pushed_apart():
    heights = pushed_apart([0.0, 0.1, 0.15, 0.9, 5.0], 1.0)
    assert all(b - a >= 1 - 1e-9 for a, b in pairwise(heights))
    assert heights[-1] == 5.0
    assert np.mean(heights[:4]) == pytest.approx(np.mean([0.0, 0.1, 0.15, 0.9]))


def test_a_sweep_measures_each_variant_as_a_profile_of_its_own(make, listed, light_profile):
    variants = listed({"sampler.steps": [1, 2, 4], "sampler.noise_level": [0.5, 0.9]})
    report = run_sweep(make(), variants, ["nearest", "random"])
    assert [each.cost.passes for each in report.measured] == [2, 1, 1, 2, 4, 4]
    alone = make()
    alone.profile = variants[-1].profile
    assert alone.run(["ours"]).metrics["ours"].auc_pr == report.measured[-1].metrics.auc_pr
    assert list(report.references) == ["nearest", "random"]
    first = report.measured[0]
    assert (first.gain, first.relative_multiply_adds) == ((0.0, 0.0), 1.0)
    assert report.measured[-1].relative_multiply_adds == pytest.approx(2.0)
    qualities = [each.metrics.auc_pr for each in report.measured]
    assert len(set(qualities)) > 3  # variants differ in what they find
    best = max(report.measured, key=lambda each: each.metrics.auc_pr)
    assert "auc_pr" in best.pareto
    table = report.to_markdown()
    assert f"| 0 | {UNCHANGED} |" in table
    assert "Nearest neighbour" in table
    assert "images, evenly spread" not in table


def test_a_second_sweep_computes_only_what_is_new(make, listed, monkeypatch):
    first = run_sweep(make(), listed({"sampler.steps": [1, 3]}))
    computed = []
    alone = Detector.compare

    def noted(self, *arguments):
        computed.append(self.profile.sampler["steps"])
        return alone(self, *arguments)

    monkeypatch.setattr(Detector, "compare", noted)
    second = run_sweep(make(), listed({"sampler.steps": [1, 3, 4]}))
    assert computed == [4] * 5
    for a, b in zip(first.measured, second.measured, strict=False):
        assert a.metrics.to_dict() == b.metrics.to_dict()


def test_whitened_distances_are_fitted_to_each_variant(make, listed, monkeypatch):
    grid = {"distance.name": "whitened", "sampler.steps": [1, 2]}
    report = run_sweep(make(), listed(grid))
    assert report.fitted_images == {"whitened": 3}
    cosine, *whitened = (each.metrics.auc_pr for each in report.measured)
    assert len({cosine, *whitened}) == 3
    assert "fitted on 3 nominal images" in report.to_markdown()
    monkeypatch.setattr(Fits, "_collect", None)  # nothing is fitted again
    again = run_sweep(make(), listed(grid))
    assert [each.metrics.auc_pr for each in again.measured] == [cosine, *whitened]
    without = make()
    without.nominal = None
    with pytest.raises(UserError, match="whitened distance needs a calibration"):
        run_sweep(without, listed(grid))


def test_a_memory_is_drawn_once_for_all_variants(make, listed, monkeypatch):
    grid = {"distance.name": "novelty", "distance.edit_weight": [0.0, 0.5], "sampler.steps": [1, 2]}
    report = run_sweep(make(), listed(grid))
    assert report.fitted_images == {"novelty": 3}
    without_edit = [m.metrics.auc_pr for m in report.measured[1:3]]
    assert without_edit[0] == without_edit[1]  # the edits don't count
    assert len({m.metrics.auc_pr for m in report.measured}) > 2
    monkeypatch.setattr(Fits, "_collect", None)  # nothing is drawn again
    run_sweep(make(), listed(grid))


def test_snapshots_of_equal_names_but_other_weights_do_not_share_maps(
    make, listed, tiny_model, tmp_path
):
    model = tmp_path / "snapshots" / "step_0000002"
    shutil.copytree(tiny_model, model)
    before = run_sweep(make(), listed({"denoiser.model": str(model)}))
    same, copied = (each.metrics.auc_pr for each in before.measured)
    assert same == copied
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    from safetensors.torch import load_file, save_file

    other = {name: value.flip(0) for name, value in load_file(weights).items()}
    save_file(other, weights, metadata={"format": "pt"})
    after = run_sweep(make(), listed({"denoiser.model": str(model)}))
    assert after.measured[0].metrics.auc_pr == same
    assert after.measured[1].metrics.auc_pr != same


def test_the_command_writes_table_and_plots(scenes, light_profile, tiny_model, tmp_path, capsys):
    for step in (2, 4):
        folder = tmp_path / "snapshots" / f"step_{step:07d}"
        shutil.copytree(tiny_model, folder)
        (folder / "snapshot.json").write_text(json.dumps({"step": step, "images": 8 * step}))
    file, output = tmp_path / "edit.yaml", tmp_path / "out" / "edit.json"
    grids = [
        {"sampler.steps": [1, 2, 4]},
        {"denoiser.model": str(tmp_path / "snapshots" / "*"), "sampler.steps": [1, 3]},
    ]
    file.write_text(yaml.safe_dump({"grids": grids}))
    arguments = ["evaluate", "--root", str(scenes / "test"), "--profile", light_profile]
    arguments += ["--cache", str(tmp_path / "cache"), "--offline", "--count", "3"]
    arguments += ["--train-root", str(scenes / "train"), "--method", "nearest"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--sweep", str(file), "--output", str(output)])
    assert ended.value.code == 0
    names = {written.name for written in output.parent.iterdir()}
    assert names == {"edit.json", "edit.md", "edit_pareto.png", "edit_training.png"}
    results = json.loads(output.read_text())
    assert [v["passes"] for v in results["variants"]] == [2, 1, 4, 1, 3, 1, 3]
    assert [v["images_seen"] for v in results["variants"]] == [None] * 3 + [16, 16, 32, 32]
    assert {v["images"] for v in results["variants"]} == {3}
    assert results["dataset_images"] == 5
    assert "on 3 of the data set's 5 images, evenly spread" in output.with_suffix(".md").read_text()
    assert "3 of 5 images" in capsys.readouterr().out
    for name in ("edit_pareto.png", "edit_training.png"):
        assert cv2.imread(str(output.parent / name)).std() > 5, name


def test_table1_excludes_a_sweep(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "--root", "x", "--table1", "--sweep", "y.yaml"])
    assert ended.value.code == 1
    assert "--table1 and --sweep exclude each other" in capsys.readouterr().err
