"""Export to ONNX and the denoiser that runs it, against the torch denoiser it came from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from support.tiny import write_profile
from typer.testing import CliRunner

from anomaly_detector_ros.cli.models import app
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.runtime.files import hash_file
from anomaly_detector_ros.synthesis.denoisers.base import Denoiser
from anomaly_detector_ros.synthesis.denoisers.loading import load_denoiser
from anomaly_detector_ros.synthesis.denoisers.lucidrains import LucidrainsConfig, LucidrainsUnet
from anomaly_detector_ros.synthesis.denoisers.lucidrains_checkpoint import (
    LucidrainsModel,
    save_converted,
)
from anomaly_detector_ros.synthesis.denoisers.onnx import CONFIG, NETWORK, OnnxDenoiser
from anomaly_detector_ros.synthesis.denoisers.onnx_export import export_denoiser
from anomaly_detector_ros.synthesis.editor import read_edit_settings
from anomaly_detector_ros.synthesis.schedule import Schedule

SIZE = (16, 24)


@pytest.fixture(scope="module")
def exported(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exports") / "tiny"
    export_denoiser(tiny_model, directory, size=SIZE)
    return directory


def converted_model(folder: Path, num_mem_kv: int, block_norm: str) -> Path:
    """A directory with a small U-Net of denoising-diffusion-pytorch's kind."""
    torch.manual_seed(0)
    levels = {"full_attn": (False, True), "attn_heads": (2, 2), "attn_dim_head": (8, 8)}
    shape = LucidrainsConfig(8, 8, (1, 2), **levels, num_mem_kv=num_mem_kv, block_norm=block_norm)
    (folder / "source").write_bytes(b"a checkpoint")
    model = LucidrainsModel(LucidrainsUnet(shape), Schedule.named("sigmoid", 20), "ema")
    save_converted(model, folder / "model", source=folder / "source")
    return folder / "model"


def same(first: Denoiser, second: Denoiser, batch: int, t: int) -> None:
    x = torch.randn(batch, 3, *SIZE, generator=torch.Generator().manual_seed(batch))
    with torch.no_grad():
        torch.testing.assert_close(first(x, t), second(x, t), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("t", [0, 500, 999])
def test_diffusers_network(tiny_model: Path, exported: Path, batch: int, t: int) -> None:
    denoiser = load_denoiser(exported)
    assert isinstance(denoiser, OnnxDenoiser)
    same(load_denoiser(tiny_model), denoiser, batch, t)


@pytest.mark.parametrize(("num_mem_kv", "block_norm"), [(0, "group"), (4, "group"), (4, "rms")])
def test_converted_network(tmp_path: Path, num_mem_kv: int, block_norm: str) -> None:
    model = converted_model(tmp_path, num_mem_kv, block_norm)
    export_denoiser(model, tmp_path / "export", size=SIZE)
    denoiser, exported = load_denoiser(model), load_denoiser(tmp_path / "export")
    for batch, t in ((1, 0), (2, 10), (3, 19)):
        same(denoiser, exported, batch, t)


def test_detect_leaves_nothing_but_its_results(
    tiny_model: Path, exported: Path, tmp_path: Path
) -> None:
    """ONNX Runtime would keep a data base of what it reports home in the user's cache."""
    denoiser = {"model": str(exported), "size": list(SIZE)}
    profile = write_profile(tmp_path / "exported.yaml", tiny_model, denoiser=denoiser)
    picture, home = tmp_path / "picture.png", tmp_path / "home"
    cv2.imwrite(str(picture), np.zeros((20, 30, 3), np.uint8))
    names = (
        "HOME",
        "TMPDIR",
        "XDG_CACHE_HOME",
        "XDG_CONFIG_HOME",
        "XDG_DATA_HOME",
        "XDG_STATE_HOME",
    )
    places = {name: home / name.lower() for name in names}
    for place in places.values():
        place.mkdir(parents=True)
    arguments = ["detect", str(picture), "--output", str(tmp_path / "out"), "--offline"]
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-m", "anomaly_detector_ros", *arguments, "--profile", str(profile)],
        cwd=Path(__file__).parents[2],
        env=environment | {name: str(place) for name, place in places.items()},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kinds = ["edited", "heatmap", "mask", "overlay", "segments"]
    expected = {f"picture_{kind}.{'npy' if kind == 'heatmap' else 'png'}" for kind in kinds}
    expected |= {"results.jsonl", "index.html", "index_files"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == expected
    assert [file for file in home.rglob("*") if not file.is_dir()] == []


def test_config_tells_schedule_size_and_source(tiny_model: Path, exported: Path) -> None:
    config = json.loads((exported / CONFIG).read_text())
    assert config["image_size"] == list(SIZE)
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert config["source"] == {
        "model": "tiny", "sha256": {weights: hash_file(tiny_model / weights)},
    }  # fmt: skip
    assert config["max_abs_difference"] < 1e-4
    schedule, original = load_denoiser(exported).schedule, load_denoiser(tiny_model).schedule
    assert torch.equal(schedule.betas, original.betas)
    assert schedule.prediction_type == original.prediction_type


def test_half_network_computes_in_float16(tiny_model: Path, tmp_path: Path) -> None:
    config = export_denoiser(tiny_model, tmp_path, size=SIZE, half=True)
    graph = onnx.load(str(tmp_path / NETWORK)).graph
    onnx.checker.check_model(str(tmp_path / NETWORK))
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert products
    assert {weights[name] for node in products for name in node.input if name in weights} == {
        TensorProto.FLOAT16
    }
    assert 0 < config["max_abs_difference"] < 0.05
    x, t = torch.randn(2, 3, *SIZE), torch.tensor([300, 900])
    with torch.no_grad():
        expected = load_denoiser(tiny_model).unet(x, t).sample
    # Unlike ONNX Runtime on the CPU, this one rounds the products to float16.
    reference = ReferenceEvaluator(str(tmp_path / NETWORK))
    (output,) = reference.run(None, {"x": x.numpy(), "timestep": t.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), expected, atol=0.02, rtol=0)
    assert not torch.allclose(torch.from_numpy(output), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["few_step", "algorithm1"])
def test_sampling_as_with_torch(tmp_path: Path, name: str) -> None:
    model = converted_model(tmp_path, 0, "group")
    export_denoiser(model, tmp_path / "export", size=SIZE)
    steps = {"steps": 3} if name == "few_step" else {}
    sampler = read_edit_settings({"name": name, "guidance_scale": 1e3, "seed": 0, **steps}).sampler
    x = torch.rand(1, 3, *SIZE) * 2 - 1
    edits = [
        sampler(load_denoiser(directory), x, generator=torch.Generator().manual_seed(1))
        for directory in (model, tmp_path / "export")
    ]
    torch.testing.assert_close(edits[0], edits[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["few_step", "algorithm1"])
def test_exact_jacobian_is_refused(exported: Path, name: str) -> None:
    settings = {"name": name, "jacobian": "exact", "guidance_scale": 1.0}
    sampler = read_edit_settings(settings).sampler
    with pytest.raises(UserError, match="jacobian: identity"):
        sampler(load_denoiser(exported), torch.zeros(1, 3, *SIZE))


def test_other_image_size_is_refused(exported: Path) -> None:
    with pytest.raises(UserError, match="exported for 16x24 images, not 24x16"):
        load_denoiser(exported)(torch.zeros(1, 3, 24, 16), 0)


def test_what_cannot_be_exported(tiny_model: Path, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is an export already"):
        export_denoiser(exported, tmp_path, size=SIZE)
    with pytest.raises(UserError, match="cannot take 15x24 images"):
        export_denoiser(tiny_model, tmp_path, size=(15, 24))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        export_denoiser(tiny_model, tmp_path, size=SIZE)
    with pytest.raises(UserError, match="holds something else"):
        export_denoiser(tiny_model, tiny_model, size=SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_damaged_export_is_named(exported: Path, tmp_path: Path) -> None:
    (tmp_path / NETWORK).write_bytes((exported / NETWORK).read_bytes())
    with pytest.raises(UserError, match=r"cannot load denoiser .* export it again"):
        load_denoiser(tmp_path)  # without its config
    (tmp_path / CONFIG).write_bytes((exported / CONFIG).read_bytes())
    (tmp_path / NETWORK).write_bytes(b"not a network")
    with pytest.raises(UserError, match=r"cannot load denoiser .* export it again"):
        load_denoiser(tmp_path)


def test_command_replaces_an_earlier_export(tiny_model: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    output = tmp_path / "export"
    arguments = ["export", str(tiny_model), "--output", str(output)]
    result = runner.invoke(app, arguments)
    assert isinstance(result.exception, UserError)
    assert "give --size" in str(result.exception)
    for half in ([], ["--half"]):
        result = runner.invoke(app, [*arguments, "--size", "16x24", *half, "--json"])
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        assert (found["path"], found["half"]) == (str(output), bool(half))
    assert {path.name for path in output.iterdir()} == {NETWORK, CONFIG}
    assert isinstance(load_denoiser(output), OnnxDenoiser)
