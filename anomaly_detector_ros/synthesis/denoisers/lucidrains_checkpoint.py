"""Checkpoints of the package denoising-diffusion-pytorch, and the local form they convert to.

The local form is a directory with ``config.json`` (network, prediction type, where it came from)
and ``model.safetensors`` (the network's state dict, and ``betas`` float32 (T,)).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from anomaly_detector_ros.errors import UserError, as_user_error, one_line
from anomaly_detector_ros.runtime.files import hash_file, replace_directory
from anomaly_detector_ros.runtime.parts import read_settings
from anomaly_detector_ros.synthesis.denoisers.lucidrains import LucidrainsConfig, LucidrainsUnet
from anomaly_detector_ros.synthesis.schedule import (
    BETA_SCHEDULES,
    PREDICTION_TYPES,
    Schedule,
    make_betas,
)

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_CLASS_NAME = LucidrainsUnet.__name__
# The Trainer's key and the prefix inside the state dict of ema_pytorch's EMA, by kind of weights.
_TRAINER_KEYS = {"ema": "ema", "online": "model"}
_PREFIXES = {"ema": "ema_model.", "online": "online_model."}


@dataclass(frozen=True)
class LucidrainsModel:
    """A network with the schedule it was trained on.

    Attributes:
        unet: float32, on the CPU.
        weights: ``ema`` (moving average) or ``online`` (as the optimiser left them).
    """

    unet: LucidrainsUnet
    schedule: Schedule
    weights: str


def read_checkpoint(
    file: Path, *, weights: str | None = None, prediction_type: str | None = None
) -> LucidrainsModel:
    """The model in a file of the package's `Trainer`, or in a saved state dict.

    The state dict is that of `GaussianDiffusion` or of ema_pytorch's `EMA` around it. The network's
    shape, the betas and the prediction type follow from its tensors. Not in it, and taken to be
    the package's defaults: 8 groups in group norms, 32 channels a head before version 1.9, and
    images scaled to [-1, 1].

    Args:
        weights: ``ema`` or ``online``; by default ema where the file has them.
        prediction_type: one of `PREDICTION_TYPES`, instead of what the weights of the loss tell.

    Raises:
        UserError: it cannot be read without executing code in it, or is something else.
    """
    if prediction_type not in (None, *PREDICTION_TYPES):
        choices = ", ".join(PREDICTION_TYPES)
        raise UserError(f"unknown prediction type '{prediction_type}': choose one of {choices}")
    if weights not in (None, *_PREFIXES):
        raise UserError(f"unknown weights '{weights}': choose one of {', '.join(_PREFIXES)}")
    state, found = _diffusion_state(_load(file), weights, file)
    betas = state.get("betas")
    if betas is None:
        raise UserError(
            f"'{file}' has no betas, so its noise schedule is unknown: "
            "give a checkpoint of GaussianDiffusion or of its Trainer, not of the Unet alone"
        )
    try:
        schedule = Schedule(betas, prediction_type or _prediction_type(state))
        unet_state = {k[6:]: v.float() for k, v in state.items() if k.startswith("model.")}
        unet = _filled(infer_config(unet_state), unet_state)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else one_line(error, 200)
        raise UserError(f"cannot convert '{file}': {reason}") from error
    return LucidrainsModel(unet, schedule, found)


def _load(file: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read '{file}' ({one_line(error)}): give a checkpoint") from error
    except Exception as error:  # pickle, zip and runtime errors, by what the file is
        raise UserError(
            f"'{file}' cannot be read as plain tensors: if it is a checkpoint whose origin you "
            "trust, load it with torch.load(FILE, weights_only=False) and torch.save its 'ema' "
            "entry alone"
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(f"'{file}' holds a {type(content).__name__}: give a state dict")
    return content


def _diffusion_state(
    content: Mapping[str, Any], weights: str | None, file: Path
) -> tuple[dict[str, Tensor], str]:
    """The state dict of `GaussianDiffusion` inside a checkpoint, and which weights they are."""
    for kind in [weights] if weights else list(_PREFIXES):
        inner = content.get(_TRAINER_KEYS[kind], content)
        if not isinstance(inner, Mapping):
            continue
        state = {k: v for k, v in inner.items() if isinstance(v, Tensor)}
        prefix = _PREFIXES[kind]
        cut = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
        if cut:
            return cut, kind
        if kind == "online" and any(k.startswith(("model.", "init_conv.")) for k in state):
            return state, kind
    wanted = f"{weights} weights" if weights else "weights"
    raise UserError(
        f"'{file}' holds no {wanted} of a denoising-diffusion-pytorch model: "
        "give a file that its Trainer wrote"
    )


def infer_config(state: Mapping[str, Tensor]) -> LucidrainsConfig:
    """The shape of the network that a `Unet` state dict belongs to.

    Raises:
        KeyError: a tensor is missing.
        ValueError: the network is of a kind that is not supported.
    """
    if any(".fn.fn." in key for key in state):
        raise ValueError("it is of denoising-diffusion-pytorch before 1.8, which had another Unet")
    if "time_mlp.0.weights" in state:
        raise ValueError("learned or random time embeddings are not supported")
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    init_dim, inputs = shapes["init_conv.weight"][:2]
    outputs = shapes["final_conv.weight"][0]
    if (inputs, outputs) != (3, 3):
        raise ValueError(
            f"it takes {inputs} channels and gives {outputs}, not RGB alone (self-conditioning, "
            "learned variances and masks are not supported)"
        )
    dim = shapes["time_mlp.1.weight"][1]
    levels = range(len({key.split(".")[1] for key in state if key.startswith("downs.")}))
    widths = [
        shapes[f"downs.{i}.3.weight" if i == levels[-1] else f"downs.{i}.3.1.weight"][0]
        for i in levels
    ]
    full = [f"downs.{i}.2.to_out.weight" in state for i in levels]
    heads = [_heads(shapes, f"downs.{i}.2", full[i]) for i in levels]
    return LucidrainsConfig(
        dim=dim,
        init_dim=init_dim,
        dim_mults=tuple(width // dim for width in widths),
        full_attn=tuple(full),
        attn_heads=tuple(head[0] for head in heads),
        attn_dim_head=tuple(head[1] for head in heads),
        num_mem_kv=heads[0][2],
        block_norm="rms" if "mid_block1.block1.norm.g" in state else "group",
    )


def _heads(shapes: Mapping[str, tuple[int, ...]], name: str, full: bool) -> tuple[int, int, int]:
    """Heads, channels of a head, and learned keys of one attention layer."""
    if f"{name}.mem_kv" in shapes:
        _, heads, *rest = shapes[f"{name}.mem_kv"]
        num_mem_kv, dim_head = rest if full else reversed(rest)
        return heads, dim_head, num_mem_kv
    return shapes[f"{name}.to_qkv.weight"][0] // (3 * 32), 32, 0


def _prediction_type(state: Mapping[str, Tensor]) -> str:
    """What the weights of the loss over time tell about what the network predicts."""
    abar = torch.cumprod(1 - state["betas"].double(), 0)
    snr = abar / (1 - abar)
    # Min-SNR weighting changes only the weights of timesteps above its bound (5 by default).
    noisy = (snr > 0.01) & (snr < 1)
    expected = {"epsilon": torch.ones_like(snr), "sample": snr, "v_prediction": snr / (snr + 1)}
    loss_weight = state.get("loss_weight", torch.zeros_like(snr)).double()
    matches = [
        name
        for name, weight in expected.items()
        if torch.allclose(loss_weight[noisy], weight[noisy], rtol=1e-3)
    ]
    if len(matches) != 1:
        raise ValueError("it does not tell what its network predicts, give --prediction-type")
    return matches[0]


def _filled(config: LucidrainsConfig, state: Mapping[str, Tensor]) -> LucidrainsUnet:
    with torch.device("meta"):  # neither memory nor random numbers for weights to be replaced
        unet = LucidrainsUnet(config)
    unet.load_state_dict(state, assign=True)
    return unet


def save_converted(
    model: LucidrainsModel,
    directory: Path,
    *,
    source: Path,
    image_size: tuple[int, int] | None = None,
    half: bool = False,
) -> dict[str, Any]:
    """Writes a model as a directory that appears whole or not at all; returns its config.

    Args:
        directory: new, empty, or with an earlier conversion, which is replaced.
        source: the file it was read from, for the record.
        image_size: height and width it was trained at, for the record.
        half: weights as float16.

    Raises:
        UserError: ``directory`` holds something else or cannot be written, or the size is wrong.
    """
    factor = model.unet.downsample_factor
    if image_size and any(side < 1 or side % factor for side in image_size):
        size = f"{image_size[0]}x{image_size[1]}"
        raise UserError(f"image size {size} does not fit: give multiples of {factor}")
    config = {
        "_class_name": _CLASS_NAME,
        "unet": asdict(model.unet.config),
        "prediction_type": model.schedule.prediction_type,
        "beta_schedule": _schedule_name(model.schedule.betas),
        "num_train_timesteps": model.schedule.num_train_timesteps,
        "image_size": image_size,
        "weights": model.weights,
        "source": {"file": source.name, "sha256": hash_file(source)},
    }
    dtype = torch.float16 if half else torch.float32
    tensors = {k: v.to(dtype).contiguous() for k, v in model.unet.state_dict().items()}
    tensors["betas"] = model.schedule.betas.float()

    def write(partial: Path) -> None:
        save_file(tensors, partial / WEIGHTS)
        (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")

    try:
        if directory.exists() and not _may_replace(directory):
            raise UserError(f"'{directory}' holds something else: give another output directory")
        replace_directory(directory, write)
    except OSError as error:
        raise UserError(
            f"cannot write '{directory}' ({one_line(error)}): give another output directory"
        ) from error
    return config


def _may_replace(directory: Path) -> bool:
    """Whether it is empty or an earlier conversion and nothing else."""
    if not directory.is_dir():
        return False
    names = {path.name for path in directory.iterdir()}
    ours = names == {CONFIG, WEIGHTS} and _CLASS_NAME in (directory / CONFIG).read_text("utf-8")
    return ours or not names


def _schedule_name(betas: Tensor) -> str:
    """For people; the betas themselves are kept."""
    for name in BETA_SCHEDULES:
        if torch.allclose(betas, make_betas(name, len(betas)), rtol=1e-3, atol=1e-6):
            return name
    return "other"


def load_converted(directory: Path) -> LucidrainsModel:
    """The model in a directory that `save_converted` wrote.

    Raises:
        UserError: it is not such a directory.
    """
    with as_user_error(
        f"cannot load denoiser '{directory}'",
        "convert its checkpoint again with `anomaly-detector models convert`",
    ):
        config = json.loads((directory / CONFIG).read_text("utf-8"))
        shape = read_settings(LucidrainsConfig, config["unet"], "network")
        tensors = load_file(directory / WEIGHTS)
        schedule = Schedule(tensors.pop("betas"), config["prediction_type"])
        unet = _filled(shape, {k: v.float() for k, v in tensors.items()})
        model = LucidrainsModel(unet, schedule, config["weights"])
    return model
