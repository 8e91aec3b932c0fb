"""`models convert`: what it takes, what it writes, and what it says of wrong files."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from anomaly_detector_ros.cli.models import app
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.synthesis.denoisers.loading import load_denoiser
from anomaly_detector_ros.synthesis.denoisers.lucidrains import LucidrainsConfig, LucidrainsUnet
from anomaly_detector_ros.synthesis.denoisers.lucidrains_checkpoint import (
    read_checkpoint,
    save_converted,
)
from anomaly_detector_ros.synthesis.denoisers.unet import DiffusersDenoiser
from anomaly_detector_ros.synthesis.schedule import make_betas
from anomaly_detector_ros.weights.registry import Registry

CONFIG = LucidrainsConfig(8, 8, (1, 2), (False, True), (4, 2), (32, 16))
runner = CliRunner()


def diffusion_state(beta_schedule: str = "sigmoid") -> dict[str, Tensor]:
    """The part that counts of `GaussianDiffusion.state_dict`, for a network that predicts v."""
    torch.manual_seed(0)
    unet = LucidrainsUnet(CONFIG).state_dict()
    betas = make_betas(beta_schedule, 100)
    return {
        "betas": betas.float(),
        "loss_weight": torch.cumprod(1 - betas, 0).float(),  # snr / (snr + 1)
        **{f"model.{key}": tensor for key, tensor in unet.items()},
    }


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save(diffusion_state(), tmp_path / "model-10.pt")
    return tmp_path / "model-10.pt"


def convert(*arguments: object) -> str:
    result = runner.invoke(app, ["convert", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0
    return result.stdout


def test_convert_writes_a_directory_that_loads(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "models" / "rugd"
    printed = convert(checkpoint, "--output", output, "--image-size", "16x24", "--json")
    assert sorted(path.name for path in output.parent.iterdir()) == ["rugd"]
    modes = {path.stat().st_mode for path in output.iterdir()}
    assert modes == {checkpoint.stat().st_mode}, "as the umask has it"
    config = json.loads((output / "config.json").read_text())
    assert json.loads(printed) == {"path": str(output), **config}
    assert config["unet"]["dim_mults"] == [1, 2]
    assert config["prediction_type"] == "v_prediction"
    assert (config["beta_schedule"], config["num_train_timesteps"]) == ("sigmoid", 100)
    assert (config["image_size"], config["weights"]) == ([16, 24], "online")
    sha256 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert config["source"] == {"file": "model-10.pt", "sha256": sha256}
    denoiser = load_denoiser(output)
    torch.testing.assert_close(
        denoiser.schedule.betas, diffusion_state()["betas"].double(), rtol=0, atol=0
    )
    torch.testing.assert_close(
        denoiser.unet.init_conv.weight, diffusion_state()["model.init_conv.weight"]
    )
    with pytest.raises(UserError, match="15x24 images: give a size of multiples of 2"):
        denoiser(torch.zeros(1, 3, 15, 24), 0)


def test_convert_again_and_half(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert "million parameters (online), v_prediction" in convert(checkpoint, "--output", output)
    size = (output / "model.safetensors").stat().st_size
    convert(checkpoint, "--output", output, "--half", "--prediction-type", "epsilon")
    assert (output / "model.safetensors").stat().st_size < 0.6 * size
    denoiser = load_denoiser(output)
    assert denoiser.schedule.prediction_type == "epsilon"
    assert next(denoiser.unet.parameters()).dtype == torch.float32


def test_output_that_holds_something_else_is_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "mine"
    output.mkdir()
    (output / "model.safetensors").write_text("mine")
    with pytest.raises(UserError, match="mine' holds something else"):
        convert(checkpoint, "--output", output)
    with pytest.raises(UserError, match=r"model-10\.pt' holds something else"):
        convert(checkpoint, "--output", checkpoint)
    (output / "config.json").write_text("{}")
    with pytest.raises(UserError, match="mine' holds something else"):
        convert(checkpoint, "--output", output)
    assert (output / "model.safetensors").read_text() == "mine"
    with pytest.raises(UserError, match=r"cannot write .*give another output directory"):
        convert(checkpoint, "--output", checkpoint / "below")


def test_interrupted_conversion_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    model = read_checkpoint(checkpoint)
    monkeypatch.setattr(Path, "write_text", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_converted(model, tmp_path / "out", source=checkpoint)
    assert [path.name for path in tmp_path.iterdir()] == ["model-10.pt"]


def rewritten(change: Callable[[dict], object]) -> dict:
    state = diffusion_state()
    change(state)
    return state


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no weights of a denoising-diffusion-pytorch model"),
        ({"model": 1, "ema": 2}, "holds no weights"),
        (torch.zeros(3), "holds a Tensor: give a state dict"),
        ({"init_conv.weight": torch.zeros(8, 3, 7, 7)}, "no betas, .* not of the Unet alone"),
        (rewritten(lambda s: s.pop("model.init_conv.weight")), "it lacks 'init_conv.weight'"),
        (rewritten(lambda s: s.pop("model.mid_attn.mem_kv")), "mid_attn.mem_kv"),
        (rewritten(lambda s: s.pop("loss_weight")), "does not tell .*give --prediction-type"),
        (
            rewritten(lambda s: s.update({"model.init_conv.weight": torch.zeros(8, 6, 7, 7)})),
            "takes 6 channels and gives 3, not RGB alone",
        ),
        (
            rewritten(lambda s: s.update({"model.downs.0.2.fn.fn.to_qkv.weight": torch.ones(1)})),
            "before 1.8",
        ),
        (
            rewritten(lambda s: s.update({"model.time_mlp.0.weights": torch.ones(8)})),
            "time embeddings are not supported",
        ),
    ],
)
def test_wrong_files(tmp_path: Path, content: object, message: str) -> None:
    file = tmp_path / "wrong.pt"
    torch.save(content, file)
    with pytest.raises(UserError, match=message) as error:
        convert(file, "--output", tmp_path / "out")
    assert str(error.value).count("\n") == 0
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_tensors(tmp_path: Path) -> None:
    file = tmp_path / "objects.pt"
    file.write_bytes(pickle.dumps(Fraction(1, 2)))
    with pytest.raises(UserError, match="cannot be read as plain tensors"):
        convert(file, "--output", tmp_path / "out")
    torch.save({"model": Fraction(1, 2)}, file)
    with pytest.raises(UserError, match=r"weights_only=False.*torch\.save its 'ema' entry"):
        convert(file, "--output", tmp_path / "out")
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        convert(tmp_path / "nowhere.pt", "--output", tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "ema"], "holds no ema weights"),
        (["--weights", "best"], "unknown weights 'best': choose one of ema, online"),
        (["--prediction-type", "pred_v"], "unknown prediction type 'pred_v'"),
        (["--image-size", "16"], "--image-size '16' is not HEIGHTxWIDTH"),
        (["--image-size", "15x24"], "image size 15x24 does not fit: give multiples of 2"),
    ],
)
def test_wrong_options(
    checkpoint: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        convert(checkpoint, "--output", tmp_path / "out", *arguments)


def test_schedules_of_others_are_kept(tmp_path: Path) -> None:
    state = diffusion_state("linear")
    state["betas"] = torch.linspace(1e-3, 0.5, 100) ** 2
    torch.save(state, tmp_path / "model.pt")
    model = read_checkpoint(tmp_path / "model.pt", prediction_type="sample")
    config = save_converted(model, tmp_path / "out", source=tmp_path / "model.pt")
    assert config["beta_schedule"] == "other"
    found = load_denoiser(tmp_path / "out").schedule.betas
    torch.testing.assert_close(found, state["betas"].double())


def test_load_denoiser_tells_the_kinds_apart(
    checkpoint: Path, tiny_model: Path, tmp_path: Path
) -> None:
    assert isinstance(load_denoiser(tiny_model), DiffusersDenoiser)
    with pytest.raises(UserError, match=r"cannot load denoiser .*models convert"):
        load_denoiser(tmp_path)
    save_converted(read_checkpoint(checkpoint), tmp_path / "out", source=checkpoint)
    (tmp_path / "out" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="convert its checkpoint again"):
        load_denoiser(tmp_path / "out")


def test_help_has_an_example() -> None:
    assert "Example: anomaly-detector models convert" in convert("--help")


@pytest.mark.parametrize(
    ("name", "file", "size"),
    [
        ("paper_cityscapes", "model-100.pt", "256x512"),
        ("paper_clevr", "model-20.pt", "112x168"),
        ("paper_uniform_random", "model-10.pt", "32x32"),
    ],
)
def test_the_other_published_checkpoints(
    name: str, file: str, size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that the registry gives, on a file of theirs with few channels."""
    monkeypatch.setenv("ANOMALY_DETECTOR_CACHE", str(tmp_path / "cache"))
    torch.save({"model": diffusion_state()}, tmp_path / file)
    with pytest.raises(UserError) as told:
        Registry.default().fetch(name, offline=True)
    command = re.search(r"`anomaly-detector models convert ([^`]*)`", str(told.value))
    assert command, told.value
    monkeypatch.chdir(tmp_path)
    convert(*command.group(1).split())
    folder = Registry.default().fetch(name, offline=True)
    height, width = map(int, size.split("x"))
    assert json.loads((folder / "config.json").read_text())["image_size"] == [height, width]
    assert load_denoiser(folder)(torch.zeros(1, 3, height, width), 50).isfinite().all()


def test_a_model_of_the_registry_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOMALY_DETECTOR_CACHE", str(tmp_path / "cache"))
    checkpoint = tmp_path / "model-10.pt"
    torch.save({"model": diffusion_state()}, checkpoint)
    registry = Registry.default()
    with pytest.raises(UserError, match=r"models convert model-10\.pt --name paper_rugd"):
        registry.fetch("paper_rugd", offline=True)
    result = runner.invoke(app, ["convert", str(checkpoint), "--name", "paper_rugd"])
    assert result.exit_code == 0, result.output
    folder = registry.fetch("paper_rugd", offline=True)
    assert folder == tmp_path / "cache" / "paper_rugd"
    assert load_denoiser(folder).schedule.num_train_timesteps == 100
    for arguments in ([], ["--name", "mobile_sam"], ["--name", "paper_rugd", "--output", "x"]):
        result = runner.invoke(app, ["convert", str(checkpoint), *arguments])
        assert isinstance(result.exception, UserError)
        assert "--output" in str(result.exception)
