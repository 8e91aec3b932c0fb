"""A denoiser exported to ONNX, run by ONNX Runtime in place of torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anomaly_detector_ros.errors import UserError, as_user_error
from anomaly_detector_ros.runtime.files import hash_file
from anomaly_detector_ros.synthesis.schedule import Schedule
from anomaly_detector_ros.weights.registry import cache_directory

if TYPE_CHECKING:
    import onnxruntime

NETWORK = "denoiser.onnx"
CONFIG = "config.json"


class OnnxDenoiser:
    """A network without a gradient, for images of one size.

    Args:
        session: inputs ``x`` float32 (B, 3, H, W) and ``timestep`` int64 (B,), output
            ``prediction`` float32 (B, 3, H, W).
        schedule: its noise schedule and prediction type.
        size: H and W.
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, schedule: Schedule, size: tuple[int, int]
    ) -> None:
        self.session, self.schedule, self.size = session, schedule, size

    @classmethod
    def from_directory(cls, directory: Path, *, device: torch.device | str = "cpu") -> OnnxDenoiser:
        """Reads what `onnx_export.export_denoiser` wrote.

        Args:
            device: CUDA runs it in TensorRT or CUDA where this ONNX Runtime has them, else on the
                CPU. TensorRT takes minutes to build its engine, once: it is kept in the cache.

        Raises:
            UserError: it is not such a directory.
        """
        with as_user_error(
            f"cannot load denoiser '{directory}'",
            "export it again with `anomaly-detector models export`",
        ):
            config = json.loads((directory / CONFIG).read_text("utf-8"))
            betas = torch.tensor(config["betas"], dtype=torch.float64)
            schedule = Schedule(betas, config["prediction_type"])
            height, width = config["image_size"]
            session = open_network(directory / NETWORK, device=device, half=config["half"])
        return cls(session, schedule, (height, width))

    def __call__(self, x: Tensor, t: int) -> Tensor:
        """x0_hat(x), not clipped, like ``x`` (B, 3, H, W), ``t`` the timestep of all.

        Raises:
            UserError: images of another size, or a gradient is asked for.
        """
        if torch.is_grad_enabled() and x.requires_grad:
            raise UserError(
                "a denoiser exported to ONNX has no gradient: set the sampler's 'jacobian: "
                "identity' or take the model it was exported from"
            )
        if tuple(x.shape[-2:]) != self.size:
            given, wanted = (f"{h}x{w}" for h, w in (x.shape[-2:], self.size))
            raise UserError(
                f"the denoiser was exported for {wanted} images, not {given}: set the profile's "
                f"denoiser size to {wanted} or export it with --size {given}"
            )
        output = predict(self.session, x, torch.full((len(x),), t))
        return self.schedule.predict_x0(x, output.to(x), t)


def predict(session: onnxruntime.InferenceSession, x: Tensor, timesteps: Tensor) -> Tensor:
    """The network's output, float32 (B, 3, H, W) on the CPU, for ``x`` and ``timesteps`` (B,)."""
    images = x.detach().to("cpu", torch.float32).contiguous().numpy()
    (output,) = session.run(["prediction"], {"x": images, "timestep": timesteps.cpu().numpy()})
    return torch.from_numpy(output)


def open_network(
    file: Path, *, device: torch.device | str = "cpu", half: bool = False
) -> onnxruntime.InferenceSession:
    """A session for an exported network, with as many threads on the CPU as torch has.

    Args:
        half: the network computes in float16, which TensorRT has to be told.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    providers = _providers(file, torch.device(device), half)
    return onnxruntime.InferenceSession(str(file), options, providers=providers)


def _providers(file: Path, device: torch.device, half: bool) -> list[Any]:
    """Those of the device that this ONNX Runtime has, the fastest first; the CPU's last."""
    import onnxruntime

    providers: list[Any] = []
    if device.type == "cuda":
        available = onnxruntime.get_available_providers()
        number = {"device_id": device.index or 0}
        if "TensorrtExecutionProvider" in available:
            settings = {**number, **_engine_settings(file, half)}
            providers.append(("TensorrtExecutionProvider", settings))
        if "CUDAExecutionProvider" in available:
            providers.append(("CUDAExecutionProvider", number))
    return [*providers, "CPUExecutionProvider"]


def _engine_settings(file: Path, half: bool) -> dict[str, Any]:
    # ONNX Runtime tells kept engines apart by file name and graph, not by the weights.
    engines = cache_directory() / "tensorrt" / hash_file(file)[:16]
    engines.mkdir(parents=True, exist_ok=True)
    return {
        "trt_fp16_enable": half,
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(engines),
    }
