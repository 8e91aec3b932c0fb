"""Exports a denoiser's network to ONNX, for other runtimes, too; half precision by own code.

ONNX Runtime's converter, told to leave all but products in float32, puts 1,102 casts into this
project's model where the code here needs 183. It also rounds all that lies between nodes to float16
and leaves the graph out of order, which `onnx.checker` refuses.
"""

from __future__ import annotations

import inspect
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.runtime.files import hash_file, replace_file
from anomaly_detector_ros.synthesis.denoisers.loading import load_denoiser
from anomaly_detector_ros.synthesis.denoisers.onnx import CONFIG, NETWORK, open_network, predict
from anomaly_detector_ros.synthesis.denoisers.unet import UnetDenoiser
from anomaly_detector_ros.synthesis.spaces import PIXELS

if TYPE_CHECKING:
    from onnx import ModelProto

# Group norms of opset 17 are made of operators that TensorRT 8.5 (JetPack 5) knows already.
OPSET = 17
# Largest difference from torch's output, as a share of that output's largest value.
TOLERANCE = {False: 1e-3, True: 5e-2}


def export_denoiser(
    directory: Path, output: Path, *, size: tuple[int, int], half: bool = False
) -> dict[str, Any]:
    """Writes ``denoiser.onnx`` and ``config.json`` for `load_denoiser`; returns the latter.

    The network takes ``x`` float32 (B, 3, H, W) and ``timestep`` int64 (B,) and gives
    ``prediction`` float32 (B, 3, H, W), whatever the schedule's prediction type says that is; B is
    free. Its output is compared with torch's before it is kept, on the CPU, where ONNX Runtime
    computes in float32 always: of ``half`` that tells what rounding the weights does.

    Args:
        directory: a model directory that `load_denoiser` reads.
        output: new, empty, or with an earlier export, which is replaced.
        size: H and W.
        half: convolutions and matrix products in float16, as autocast would, the rest in float32.

    Raises:
        UserError: ``directory`` has no network to export, the size does not suit it, ``output``
            holds something else or cannot be written, or the outputs differ.
    """
    denoiser = load_denoiser(directory)
    if not isinstance(denoiser, UnetDenoiser):
        raise UserError(f"'{directory}' is an export already: give the model it was made from")
    if denoiser.space is not PIXELS:
        raise UserError(
            f"'{directory}' works on an autoencoder's latents, which an export does not hold: give "
            "a model that works on pixels"
        )
    unet, schedule = denoiser.unet, denoiser.schedule
    config: dict[str, Any] = {
        "_class_name": "OnnxDenoiser",
        "prediction_type": schedule.prediction_type,
        "image_size": list(size),
        "half": half,
        "opset": OPSET,
        "source": {"model": directory.expanduser().resolve().name, "sha256": _hashes(directory)},
        "betas": schedule.betas.tolist(),
    }
    expected = _Expected(unet, size, schedule.num_train_timesteps)

    def write_network(partial: Path) -> None:
        _write_network(unet, size, half, partial)
        config["max_abs_difference"] = expected.compare(partial, half)

    try:
        _clear(output)
        replace_file(output / NETWORK, write_network)
        text = json.dumps(config, indent=2) + "\n"
        replace_file(output / CONFIG, lambda partial: partial.write_text(text, "utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot write '{output}' ({one_line(error)}): give another output directory"
        ) from error
    return config


def _hashes(directory: Path) -> dict[str, str]:
    """sha256 of each file of weights."""
    directory = directory.expanduser()
    files = [*directory.glob("*.safetensors"), *directory.glob("unet/*.safetensors")]
    return {file.relative_to(directory).as_posix(): hash_file(file) for file in sorted(files)}


def _clear(output: Path) -> None:
    """Makes the directory; of an earlier export only the network stays, which alone is useless."""
    if output.exists():
        names = {path.name for path in output.iterdir()}
        if names - {NETWORK, CONFIG} or names == {CONFIG}:
            raise UserError(f"'{output}' holds something else: give another output directory")
    output.mkdir(parents=True, exist_ok=True)
    (output / CONFIG).unlink(missing_ok=True)


class _Expected:
    """What torch gives for some images, early, in the middle and late."""

    def __init__(self, unet: nn.Module, size: tuple[int, int], num_train_timesteps: int) -> None:
        # Another number of images than the network is traced with.
        self.timesteps = torch.linspace(0, num_train_timesteps - 1, 3).long()
        self.x = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad():
                self.output = unet(self.x, self.timesteps).sample
        except RuntimeError as error:
            raise UserError(
                f"the denoiser cannot take {size[0]}x{size[1]} images ({one_line(error, 100)}): "
                "give another --size"
            ) from error

    def compare(self, file: Path, half: bool) -> float:
        """The largest absolute difference of a network file's output; UserError if it is large."""
        output = predict(open_network(file), self.x, self.timesteps)
        difference = float((output - self.output).abs().max())
        allowed = TOLERANCE[half] * float(self.output.abs().max())
        if not difference <= allowed:  # nor NaN
            remedy = "export it without --half" if half else "use the model itself"
            raise UserError(
                f"the exported network differs from torch's by {difference:.2g}, more than "
                f"{allowed:.2g}: {remedy}"
            )
        return difference


class _Prediction(nn.Module):
    """The network's prediction as a plain tensor."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        output: Tensor = self.unet(x, timestep).sample
        return output


def _write_network(unet: nn.Module, size: tuple[int, int], half: bool, file: Path) -> None:
    import onnx

    # The exporter that traces: the other one needs a further package. torch 2.4 has no such choice.
    choices = inspect.signature(torch.onnx.export).parameters
    tracing: dict[str, Any] = {"dynamo": False} if "dynamo" in choices else {}
    names = ("x", "timestep", "prediction")
    example = (torch.zeros(2, 3, *size), torch.zeros(2, dtype=torch.int64))
    with torch.no_grad(), warnings.catch_warnings():
        # Of sizes that become constants, as they shall, and of the exporter being the older one.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Prediction(unet).eval(),
            example,
            str(file),
            input_names=list(names[:2]),
            output_names=list(names[2:]),
            dynamic_axes={name: {0: "batch"} for name in names},
            opset_version=OPSET,
            **tracing,
        )
    if half:
        network = onnx.load(str(file))
        _products_in_half(network)
        onnx.save(network, str(file))


def _products_in_half(network: ModelProto) -> None:
    """Casts what convolutions and matrix products take to float16, and their outputs back."""
    from onnx import TensorProto, helper, numpy_helper

    graph = network.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes, halved = [], {}
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            nodes.append(node)
            continue
        for index, name in enumerate(node.input):
            if name not in halved:
                halved[name] = f"{name}_half"
                if name in weights:
                    array = numpy_helper.to_array(weights[name]).astype("float16")
                    graph.initializer.append(numpy_helper.from_array(array, halved[name]))
                else:
                    cast = helper.make_node("Cast", [name], [halved[name]], to=TensorProto.FLOAT16)
                    nodes.append(cast)
            node.input[index] = halved[name]
        output = node.output[0]
        node.output[0] = f"{output}_product"
        back = helper.make_node("Cast", [node.output[0]], [output], to=TensorProto.FLOAT)
        nodes += [node, back]
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    for field, items in (("node", nodes), ("initializer", kept)):
        graph.ClearField(field)
        getattr(graph, field).extend(items)
