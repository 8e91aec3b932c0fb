"""The file of a calibration, and for which profiles it may be used."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import save_file
from support.calibration_data import draw_pictures, gaussian_pairs, pooled, whitened

from anomaly_detector_ros.building import Parts, differences, fingerprint
from anomaly_detector_ros.calibration.calibration import (
    DEFAULT_CAMERA,
    KIND,
    Calibration,
    NominalScores,
    load_calibration,
)
from anomaly_detector_ros.calibration.distribution import ScoreDistribution
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.distances.novelty import Novelty, NoveltyDistance
from anomaly_detector_ros.distances.whitened import Whitened
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.features import timm
from anomaly_detector_ros.fitting import fit_calibration
from anomaly_detector_ros.profiles import load_profile
from anomaly_detector_ros.runtime.fitted_file import header_key


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts(torch.device("cpu"), offline=True)


def a_calibration() -> Calibration:
    nominal = np.random.default_rng(3).gamma(2.0, size=5000)
    return Calibration(
        {DEFAULT_CAMERA: NominalScores(pooled(nominal), None, 7, 5000)},
        {"sampler": {"steps": 2}},
        whitened(gaussian_pairs(0)).tensors(),
        4,
    )


def test_a_saved_calibration_is_the_same_when_loaded(tmp_path: Path):
    saved = a_calibration()
    saved.save(tmp_path / "c.safetensors")
    loaded = load_calibration(tmp_path / "c.safetensors")
    scores = np.linspace(0, 20, 999).reshape(27, 37)
    assert np.array_equal(loaded.heatmap(scores), saved.heatmap(scores))
    assert loaded.heatmap(scores).dtype == np.float32
    pair = gaussian_pairs(5)
    built = Whitened().build(loaded.distance)
    assert torch.equal(built(*pair), whitened(gaussian_pairs(0))(*pair))
    assert (loaded.nominal().images, loaded.nominal().pixels, loaded.seed) == (7, 5000, 4)
    assert loaded.fingerprint == saved.fingerprint
    plain = replace(saved, distance={})
    plain.save(tmp_path / "c.safetensors")
    assert load_calibration(tmp_path / "c.safetensors").distance == {}
    assert [file.name for file in tmp_path.iterdir()] == ["c.safetensors"]


def test_two_calibrations_share_a_distance(tmp_path: Path):
    memory = NoveltyDistance(torch.randn(9000, 8), Novelty()).tensors()
    whole = replace(a_calibration(), distance=memory)
    whole.save(tmp_path / "whole.safetensors")
    replace(whole, shared="whole.safetensors").save(tmp_path / "part.safetensors")
    assert (tmp_path / "part.safetensors").stat().st_size < 60_000
    part = load_calibration(tmp_path / "part.safetensors")
    assert torch.equal(part.distance["memory"], memory["memory"])
    assert part.shared == "whole.safetensors"
    part.save(tmp_path / "again.safetensors")
    assert load_calibration(tmp_path / "again.safetensors").distance.keys() == memory.keys()
    replace(whole, distance={"memory": memory["memory"][:10]}).save(tmp_path / "whole.safetensors")
    with pytest.raises(UserError, match=r"for another 'whole.safetensors'"):
        load_calibration(tmp_path / "part.safetensors")
    (tmp_path / "whole.safetensors").unlink()
    with pytest.raises(UserError, match=r"cannot read calibration .*whole.safetensors"):
        load_calibration(tmp_path / "part.safetensors")


def test_a_novelty_distance_comes_back_from_its_file(tmp_path: Path):
    generator = torch.Generator().manual_seed(0)
    saved = NoveltyDistance(torch.randn(50, 4, generator=generator), Novelty())
    replace(a_calibration(), distance=saved.tensors()).save(tmp_path / "c.safetensors")
    loaded = Novelty().build(load_calibration(tmp_path / "c.safetensors").distance)
    pair = gaussian_pairs(5)
    torch.testing.assert_close(loaded(*pair), saved(*pair), atol=5e-3, rtol=0)


def test_damaged_and_foreign_files_are_refused(tmp_path: Path):
    file = tmp_path / "c.safetensors"
    with pytest.raises(UserError, match="cannot read calibration"):
        load_calibration(file)
    a_calibration().save(file)
    whole = file.read_bytes()
    altered = whole[:-1] + bytes([whole[-1] ^ 1])
    for damaged in (b"", whole[:5], whole[:1000], whole[:-1], altered, b"\xff\xd8" * 500):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="is no calibration"):
            load_calibration(file)
    for metadata in (
        None,
        {header_key(KIND): "{}"},
        {header_key(KIND): "[1]"},
        {header_key(KIND): json.dumps({"format": 99})},
    ):
        save_file({"scores": np.zeros(3)}, file, metadata)
        with pytest.raises(UserError, match="is no calibration"):
            load_calibration(file)
    falling = ScoreDistribution(np.array([2.0, 1.0]), np.array([0.0, 0.5]), 1.0)
    cameras = {DEFAULT_CAMERA: NominalScores(falling, None, 1, 2)}
    replace(a_calibration(), cameras=cameras).save(file)
    with pytest.raises(UserError, match="is no calibration"):
        load_calibration(file)


def test_a_calibration_for_something_else_is_refused_with_the_difference(
    light_profile: str, parts: Parts, tmp_path: Path
):
    file = tmp_path / "c.safetensors"
    pictures = draw_pictures(tmp_path / "images", 3, 0)
    fitted_for = {"distance": {"name": "whitened"}}
    profile = load_profile(light_profile, overrides=fitted_for)
    fit_calibration(profile, parts, pictures).save(file)
    changes = {
        "sampler.steps is 3, was 2": {"sampler": {"steps": 3}},
        "sampler.seed is 5, was 0; sampler.steps is 4, was 2": {"sampler": {"steps": 4, "seed": 5}},
        "distance.name is cosine, was whitened": {"distance": {"name": "cosine"}},
        "distance.shrinkage is 0.5, was 0.01": {"distance": {"shrinkage": 0.5}},
        "features.input_size is [16, 24], was [32, 48]": {"features": {"input_size": [16, 24]}},
        "segmenter.name is superpixels, was none": {"segmenter": {"name": "superpixels"}},
        "upsampler.name is none, was bilinear": {"upsampler": {"name": "none"}},
    }
    used = {**fitted_for, "calibration": {"file": str(file)}}
    for words, change in changes.items():
        overrides = {**used, **change}
        if "distance" in change:
            overrides["distance"] = {**fitted_for["distance"], **change["distance"]}
        changed = load_profile(light_profile, overrides=overrides)
        with pytest.raises(UserError, match=re.escape(words)) as refusal:
            Detector.from_parts(changed, parts)
        assert "anomaly-detector calibrate" in str(refusal.value)
        assert "\n" not in str(refusal.value)
    # Distances alone depend on no segments.
    other = load_profile(light_profile, overrides={**used, "segmenter": {"name": "superpixels"}})
    assert not Detector.from_parts(other, parts, calibrated=False).calibrated
    precise = load_profile(light_profile, overrides={**used, "denoiser": {"dtype": "auto"}})
    assert Detector.from_parts(precise, parts).calibrated


def test_a_moved_denoiser_is_the_same_and_another_is_not(
    light_profile: str, tiny_model: Path, tmp_path: Path, parts: Parts
):
    fitted = fingerprint(load_profile(light_profile), parts.registry)
    moved = Path(shutil.copytree(tiny_model, tmp_path / "moved"))
    profile = load_profile(light_profile, overrides={"denoiser": {"model": str(moved)}})
    assert differences(fitted, fingerprint(profile, parts.registry)) == []
    (weights,) = moved.rglob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert differences(fitted, fingerprint(profile, parts.registry)) == [
        "other weights of denoiser"
    ]


def test_weights_of_the_registry_count(parts: Parts):
    fitted = fingerprint(load_profile("embedded"), parts.registry)
    assert fitted["denoiser"]["model"] == "offroad_latent"
    assert "dtype" not in fitted["denoiser"]
    assert all(len(sha) == 64 for sha in fitted["weights"]["features"])
    retrained = {**fitted, "weights": {**fitted["weights"], "denoiser": ["0" * 64]}}
    assert differences(retrained, fitted) == ["other weights of denoiser"]
    light = fingerprint(load_profile("light"), parts.registry)
    assert differences(fitted, light) == ["segmenter.name is superpixels, was mobile_sam"]
    assert differences(fitted, light, segmenter=False) == []


def test_weights_count_by_what_they_hold_wherever_they_lie(
    light_profile: str, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Named by a path, or of their publisher's repository."""

    def of(weights: str | None) -> dict:
        features = {"name": "dino", **({"weights": weights} if weights else {})}
        profile = load_profile(light_profile, overrides={"features": features})
        return fingerprint(profile, parts.registry)

    file, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for each, content in ((file, b"one"), (other, b"one")):
        each.write_bytes(content)
    assert differences(of(str(file)), of(str(other))) == []
    monkeypatch.setattr(timm, "hub_file", lambda *arguments, **options: other)
    assert differences(of(str(file)), of(None)) == []
    other.write_bytes(b"another")
    assert differences(of(str(file)), of(str(other))) == ["other weights of features"]
    assert differences(of(str(file)), of(None)) == ["other weights of features"]


@pytest.mark.parametrize("name", ["embedded", "light"])
def test_the_shipped_calibrations_are_those_of_their_profiles(name: str, parts: Parts):
    profile = load_profile(name)
    try:
        parts.fetch(profile)
    except UserError as error:
        pytest.skip(f"weights absent: {error}")
    assert parts.calibration(profile) is not None


def test_a_calibration_of_another_distance_is_refused(light_profile: str, parts: Parts, tmp_path):
    profile = load_profile(light_profile, overrides={"distance": {"name": "whitened"}})
    of = fingerprint(profile, parts.registry)
    memory = NoveltyDistance(torch.eye(3), Novelty()).tensors()
    file = tmp_path / "c.safetensors"
    replace(a_calibration(), fingerprint=of, distance=memory).save(file)
    with pytest.raises(UserError, match="does not hold what the whitened distance learnt"):
        parts.distance(replace(profile, calibration={"file": str(file)}))


def test_a_whitened_distance_needs_a_calibration(light_profile: str, parts: Parts):
    profile = load_profile(light_profile, overrides={"distance": {"name": "whitened"}})
    with pytest.raises(UserError, match="run anomaly-detector calibrate"):
        Detector.from_parts(profile, parts)


def test_calibrations_are_found_beside_the_profiles_file(tmp_path: Path):
    def write(name: str, **profile) -> str:
        file = tmp_path / name
        file.write_text(yaml.safe_dump({"mine": {"base": "embedded", **profile}}))
        return str(file)

    here = write("here.yaml", calibration={"file": "fits/c.safetensors"})
    assert load_profile(here).calibration == {"file": str(tmp_path / "fits/c.safetensors")}
    absolute = write("absolute.yaml", calibration={"file": "/fits/c.safetensors"})
    assert load_profile(absolute).calibration == {"file": "/fits/c.safetensors"}
    assert load_profile(write("none.yaml", calibration=None)).calibration == {}
    plain = load_profile(write("plain.yaml", base="paper_small", distance=None))
    assert plain.distance == {"name": "cosine"}
    with pytest.raises(UserError, match="calibration has no setting 'path'"):
        load_profile(write("bad.yaml", calibration={"path": "x"}))
    with pytest.raises(UserError, match="calibration is not a mapping"):
        load_profile(write("bad.yaml", calibration="c.safetensors"))
    with pytest.raises(UserError, match="a distance needs a name"):
        load_profile(write("bad.yaml", base="paper_small", distance={"shrinkage": 0.1}))
