"""Weights of published networks: from Hugging Face's hub and from files, without unpickling."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from anomaly_detector_ros.errors import UserError, one_line

_PICKLED = (".pt", ".pth", ".bin", ".ckpt")
# Where training scripts put the weights among other things.
_NESTED = ("state_dict", "model")


def hub_file(model: str, repo: str, name: str, *, offline: bool) -> Path:
    """A file of a Hugging Face repository, from its cache or, unless offline, from the network.

    Token, endpoint, cache and HF_HUB_OFFLINE are huggingface_hub's.

    Args:
        model: what the weights are of, for messages.
        repo: ``owner/name``.
        name: the file; a .safetensors one.
        offline: never touch the network.

    Raises:
        UserError: the file cannot be had.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, name, local_files_only=offline))
    except Exception as error:  # its errors share no base class, and depend on its HTTP client
        remedy = "give the file as `weights`, or run once online without HF_HUB_OFFLINE"
        reason = "not in the cache" if offline else one_line(error, 160)
        raise UserError(f"{model}: {name} of {repo} cannot be had ({reason}): {remedy}") from None


def read_state(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a .pt, .pth, .bin or .ckpt one with tensors only.

    Args:
        path: the file.
        prefix: only the tensors whose names start so, without it.

    Raises:
        UserError: the file is missing, of another kind, or holds no such tensors.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such weights file: correct the path")
    if path.suffix == ".safetensors":
        state = _read_safetensors(path, prefix)
    elif path.suffix in _PICKLED:
        state = _read_pickled(path, prefix)
    else:
        kinds = ", ".join((".safetensors", *_PICKLED))
        raise UserError(f"{path}: unknown kind of weights file: give one of {kinds}")
    if not state:
        what = f"weights that start with '{prefix}'" if prefix else "weights"
        raise UserError(f"{path}: holds no {what}: give the model's own file")
    return state


def _read_safetensors(path: Path, prefix: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            return {name[len(prefix) :]: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file ({one_line(error, 120)})") from None


def _read_pickled(path: Path, prefix: str) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        # torch's message recommends weights_only=False; TorchScript archives end here too.
        raise UserError(
            f"{path}: not a file of plain tensors: convert it to .safetensors"
        ) from None
    for key in _NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = content if isinstance(content, dict) else {}
    named = {
        str(name).removeprefix("module."): value
        for name, value in tensors.items()
        if isinstance(value, Tensor)
    }
    return {name[len(prefix) :]: v for name, v in named.items() if name.startswith(prefix)}
