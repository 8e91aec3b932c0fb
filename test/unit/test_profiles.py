from pathlib import Path

import pytest
import yaml

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.profiles import load_profile, profile_names
from anomaly_detector_ros.runtime.resources import share_dir
from anomaly_detector_ros.segmentation.base import NoSegments


@pytest.mark.parametrize("name", profile_names())
def test_every_installed_profile_loads(name):
    profile = load_profile(name)
    assert profile.title
    assert 0 < profile.threshold < 1


def test_embedded_needs_its_registry_models():
    models = load_profile("embedded").model_names()
    assert models == ["offroad_latent", "dinov2_vits14_focus", "mobile_sam"]
    assert "mobile_sam" not in load_profile("light").model_names()


def test_overrides_change_settings_and_a_new_name_replaces_the_part():
    overrides = {"sampler": {"steps": 3}, "segmenter": {"name": "none"}, "threshold": 0.9}
    profile = load_profile("embedded", overrides=overrides)
    assert profile.sampler["steps"] == 3
    assert profile.sampler["name"] == "few_step"
    assert profile.segmenter == {"name": "none"}
    assert profile.threshold == 0.9


def write(tmp_path, content):
    file = tmp_path / "profiles.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(file)


FEW_STEP = {"name": "few_step"}
PARTS = {part: {} for part in ("denoiser", "sampler", "features", "upsampler", "segmenter")}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": {**PARTS, "smapler": {}}}, "unknown part 'smapler'"),
        ({"a": {"base": "b"}}, "unknown profile 'b'"),
        ({"a": {"base": "a"}}, "profile 'a': its 'base' is a circle \\(a -> a\\)"),
        ({"a": {"base": "b"}, "b": {"base": "c"}, "c": {"base": "b"}}, "circle \\(b -> c -> b\\)"),
        ({"a": {"denoiser": {}}}, "lacks the part 'sampler'"),
        ({"a": {**PARTS, "threshold": 3}}, "threshold 3"),
        ({"a": {**PARTS, "threshold": "high"}}, "threshold high"),
        ({"a": {**PARTS, "sampler": "few_step"}}, "sampler is not a mapping"),
        ({"a": {**PARTS, "sampler": FEW_STEP}}, "profile 'a': denoiser lacks the setting 'model'"),
        (
            {"a": {"base": "light", "segmenter": {"cuont": 9}}},
            "profile 'a': segmenter superpixels has no setting 'cuont' \\(did you mean 'count'",
        ),
        ({"a": {"base": "light", "features": {"name": "dinov3"}}}, "unknown features 'dinov3'"),
        ({"a": {"base": "light", "denoiser": {"size": [160]}}}, "denoiser lacks the setting 'size"),
        ("a: [", "cannot read profiles"),
        ("just text", "not a profiles file"),
    ],
)
def test_bad_profile_files_are_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        load_profile(write(tmp_path, content))


def test_a_file_builds_on_an_installed_profile(tmp_path):
    model = {"model": "runs/mine/model", "size": [64, 120]}
    profile = load_profile(write(tmp_path, {"mine": {"base": "embedded", "denoiser": model}}))
    assert profile.name == "mine"
    path = str(tmp_path / "runs/mine/model")  # whatever the working directory
    assert profile.denoiser == {**model, "model": path, "dtype": "auto"}
    assert profile.features == load_profile("embedded").features
    assert "offroad_latent" not in profile.model_names()


def test_unknown_and_missing_profiles_are_refused(tmp_path):
    with pytest.raises(UserError, match="unknown profile 'nope': choose one of embedded"):
        load_profile("nope")
    with pytest.raises(UserError, match="cannot read profiles"):
        load_profile(str(tmp_path / "absent.yaml"))
    (tmp_path / "picture.yaml").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(UserError, match="cannot read profiles"):
        load_profile(str(tmp_path / "picture.yaml"))


def test_paths_are_relative_to_the_file_that_names_them(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    parts = {
        "denoiser": {"model": "./model"},
        "features": {"name": "vit", "weights": "weights/vit.pth"},
        "upsampler": {"name": "featup", "weights": "/elsewhere/jbu.ckpt"},
        "calibration": {"file": "c.safetensors"},
    }
    title = "ViT-S/16 in place of DINOv2"
    profile = load_profile(write(tmp_path, {"a": {"base": "light", "title": title, **parts}}))
    assert profile.title == title
    assert profile.denoiser["model"] == str(tmp_path / "model")
    assert profile.features["weights"] == str(tmp_path / "weights/vit.pth")
    assert profile.upsampler["weights"] == "/elsewhere/jbu.ckpt"
    assert profile.calibration["file"] == str(tmp_path / "c.safetensors")
    assert profile.model_names() == []


def test_what_is_uncovered_is_zero_as_in_the_paper_unless_said_otherwise():
    assert load_profile("light", overrides={"segmenter": {"name": "none"}}).parts.segmenter == (
        NoSegments(uncovered="zero")
    )
    assert load_profile("light").parts.segmenter.uncovered == "raw"


def test_underwater_is_small() -> None:
    """Its denoiser, memory and calibration; the autoencoder is shared."""
    models = share_dir("models")
    files = [*(models / "underwater_latent").rglob("*.safetensors")]
    files.append(Path(load_profile("underwater").calibration["file"]))
    assert sum(file.stat().st_size for file in files) < 15 * 2**20
