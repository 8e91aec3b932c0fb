"""FeatUp's released checkpoints of its joint bilateral upsampler."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.features.featup import JbuStack

_PREFIX = "upsampler."


def load_featup(path: Path) -> JbuStack:
    """The upsampler in a Lightning checkpoint of FeatUp, float32, on the CPU.

    The file is a pickle. It is read by torch's own interpreter for such files, which rebuilds
    tensors and plain containers, and refuses to look up, let alone call, anything else.

    Raises:
        UserError: the file is missing, is damaged, holds other objects than tensors and plain
            containers, or is not a JBU checkpoint.
    """
    state = _upsampler_state(path)
    try:
        stack = JbuStack(channels=len(state["fixup_proj.1.weight"]))
        stack.load_state_dict(state)
    except KeyError as error:
        raise UserError(_unfit(path, f"it lacks {error}")) from None
    except RuntimeError as error:
        raise UserError(_unfit(path, one_line(error, 200))) from None
    return stack.eval().requires_grad_(False)


def _upsampler_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path}: no such weights file: fetch the model or correct the path")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # torch's message advises to read the file without this protection.
        raise UserError(
            f"{path}: holds more than tensors, which is not read because it could run code: "
            "take the checkpoint that FeatUp released"
        ) from None
    except Exception as error:  # a damaged file may raise anything
        raise UserError(
            f"{path}: cannot be read ({one_line(error, 200)}): fetch the model again"
        ) from None
    state = content.get("state_dict") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping):
        raise UserError(_unfit(path, "it has no state_dict"))
    return {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in state.items()
        if name.startswith(_PREFIX)
    }


def _unfit(path: Path, reason: str) -> str:
    return f"{path}: not a FeatUp JBU checkpoint ({reason}): take one that FeatUp released"
