"""Opens ONNX files with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from anomaly_detector_ros.errors import UserError, one_line

if TYPE_CHECKING:
    import onnxruntime


def open_session(
    path: Path,
    *,
    model: str,
    device: torch.device | str = "cpu",
    batched: Collection[str] = (),
) -> onnxruntime.InferenceSession:
    """A session for an ONNX file, with as many threads on the CPU as torch has.

    Args:
        path: the file.
        model: its name in the registry, for the remedy when it is missing.
        device: "cuda" runs it on the GPU where this ONNX Runtime can, else on the CPU.
        batched: inputs whose first dimension, whatever the file declares, may be of any size.

    Raises:
        UserError: the file is missing or not a network.
    """
    import onnx
    import onnxruntime

    if not path.is_file():
        raise UserError(f"{path}: no such file: run anomaly-detector models fetch {model}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        source: str | bytes = str(path)
        if batched:
            network = onnx.load(str(path))
            for item in network.graph.input:
                if item.name in batched:
                    item.type.tensor_type.shape.dim[0].dim_param = "batch"
            source = network.SerializeToString()
        return onnxruntime.InferenceSession(source, options, providers=_providers(device))
    except Exception as error:  # onnx, protobuf and onnxruntime raise many kinds
        detail = one_line(error, 200)
        raise UserError(f"{path}: not a usable ONNX file: fetch it again ({detail})") from None


def _providers(device: torch.device | str) -> list[Any]:
    import onnxruntime

    providers: list[Any] = ["CPUExecutionProvider"]
    device = torch.device(device)
    if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
    return providers
