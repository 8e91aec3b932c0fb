"""Denoisers from their directories, whichever kind they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Gt

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.runtime.inference import ready
from anomaly_detector_ros.synthesis.denoisers import lucidrains_checkpoint
from anomaly_detector_ros.synthesis.denoisers.base import Denoiser
from anomaly_detector_ros.synthesis.denoisers.onnx import NETWORK, OnnxDenoiser
from anomaly_detector_ros.synthesis.denoisers.unet import DiffusersDenoiser, UnetDenoiser
from anomaly_detector_ros.weights.loading import Weighted


@dataclass(frozen=True)
class DenoiserSettings(Weighted):
    """A profile's ``denoiser``.

    Attributes:
        model: name in the registry, or the path, with a slash, of a directory; see `load_denoiser`.
        size: H and W at which it edits.
        dtype: precision of the network; see `devices.choose_dtype`.
        compile: how the network is called; see `compiled.accelerate`.
    """

    model: str
    size: tuple[Annotated[int, Gt(0)], Annotated[int, Gt(0)]]
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: Literal["auto", "none", "graph", "compile"] = "auto"

    def weights_used(self) -> tuple[str, ...]:
        """See `Weighted`."""
        return (self.model,)


def load_denoiser(
    directory: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Denoiser:
    """The denoiser of a diffusers model, a converted checkpoint or an export, told by its files.

    Args:
        dtype: precision of the network; an export has the one it was exported with.

    Raises:
        UserError: the directory is missing or holds none of them.
    """
    directory = directory.expanduser()
    if (directory / NETWORK).is_file():
        return OnnxDenoiser.from_directory(directory, device=device)
    if (directory / lucidrains_checkpoint.WEIGHTS).is_file():
        model = lucidrains_checkpoint.load_converted(directory)
        return UnetDenoiser(ready(model.unet, device, dtype), model.schedule, dtype)
    if (directory / "unet").is_dir():
        return DiffusersDenoiser.from_pretrained(directory, device=device, dtype=dtype)
    raise UserError(
        f"cannot load denoiser '{directory}' (neither unet/ nor model.safetensors in it): give a "
        "diffusers model directory or one that `anomaly-detector models convert` wrote"
    )


def compiled(denoiser: Denoiser, mode: str) -> Denoiser:
    """The denoiser with its network called as `compiled.accelerate` has it.

    Raises:
        UserError: unknown mode, or one that an export, which torch does not run, cannot have.
    """
    if isinstance(denoiser, UnetDenoiser):
        return denoiser.compiled(mode)
    if mode not in ("auto", "none"):
        raise UserError(
            f"a denoiser exported to ONNX cannot have 'compile: {mode}': leave it out, or take the "
            "model it was exported from"
        )
    return denoiser
