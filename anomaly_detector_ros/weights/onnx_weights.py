"""Weights out of networks that were exported from torch to ONNX.

An export keeps the names of most weights. Those of linear layers become anonymous constants, which
are found by following the graph to their biases.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from anomaly_detector_ros.errors import UserError, one_line

if TYPE_CHECKING:
    import onnx


class OnnxExport:
    """The graph of an exported network.

    Args:
        path: the ONNX file.

    Attributes:
        nodes: in topological order.
        constants: by name.

    Raises:
        UserError: the file is missing, or no ONNX.
    """

    def __init__(self, path: Path) -> None:
        import onnx
        from google.protobuf.message import DecodeError

        model = onnx.ModelProto()
        try:
            # Read in place: `onnx.load` holds the bytes of the file beside what it makes of them.
            with (
                path.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
                memoryview(mapped) as content,
            ):
                model.ParseFromString(content)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file: fetch the model or correct the path") from None
        except (DecodeError, OSError, ValueError) as error:  # ValueError: it is empty
            detail = one_line(error, 200)
            raise UserError(f"{path}: not a usable ONNX file: fetch it again ({detail})") from None
        graph = model.graph
        self.nodes: list[onnx.NodeProto] = list(graph.node)
        self.constants: dict[str, onnx.TensorProto] = {
            **{item.name: item for item in graph.initializer},
            **{n.output[0]: n.attribute[0].t for n in self.nodes if n.op_type == "Constant"},
        }

    def tensor(self, name: str) -> Tensor:
        """A constant in float32."""
        from onnx import numpy_helper

        # A copy, because the array is a read-only view of the protobuf message's bytes.
        return torch.from_numpy(np.array(numpy_helper.to_array(self.constants[name]), np.float32))

    def named(self) -> list[str]:
        """Constants that kept the names of torch's weights."""
        return [name for name in self.constants if name[0] != "/" and "::" not in name]

    def linear(self) -> dict[str, str]:
        """``<layer>.weight`` -> constant, wherever a named bias is added to a product with one.

        The constants are (in, out) where torch's Linear holds (out, in).
        """
        products: dict[str, str] = {}
        found: dict[str, str] = {}
        for node in self.nodes:
            if node.op_type == "MatMul" and node.input[1] in self.constants:
                products[node.output[0]] = node.input[1]
            elif node.op_type == "Add":
                for bias, value in (tuple(node.input), tuple(reversed(node.input))):
                    named = bias in self.constants and bias.endswith(".bias")
                    if named and value in products:
                        found[bias.removesuffix("bias") + "weight"] = products[value]
        return found
