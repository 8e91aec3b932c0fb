"""DINOv2 weights from files, under the names of timm's ``vit_*_patch14_dinov2`` models.

Three layouts are understood: an ONNX export of the Hugging Face model, and safetensors files with
Hugging Face's names or with the official (= timm's) names. No pickle is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.weights.onnx_weights import OnnxExport

_EMBEDDINGS = "embeddings."
_PASS_THROUGH = frozenset({"Reshape", "Transpose", "Cast", "Resize", "Identity"})


class _UnfitError(Exception):
    """The file does not hold a DINOv2 backbone; the reader turns it into a UserError."""


def load_dinov2_weights(path: Path, blocks: int) -> dict[str, Tensor]:
    """Weights of the first ``blocks`` transformer blocks, float32, under timm's names.

    The embeddings and the final norm are always included; ``pos_embed`` is (1, 1 + N, C) with
    the class token first. Blocks behind ``blocks`` are neither converted nor copied.

    Raises:
        UserError: the file is missing, of another format, or holds no such backbone.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such weights file: fetch the model or correct the path")
    try:
        if path.suffix == ".onnx":
            return _huggingface_to_timm(_onnx_state(path, blocks), blocks)
        if path.suffix == ".safetensors":
            return _safetensors_state(path, blocks)
    except _UnfitError as error:
        raise UserError(
            f"{path}: not a DINOv2 backbone ({error}): fetch the model's file again"
        ) from None
    raise UserError(f"{path}: unknown kind of weights file: give an .onnx or .safetensors file")


def _safetensors_state(path: Path, blocks: int) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            official = "patch_embed.proj.weight" in names
            marker = "blocks." if official else "encoder.layer."
            wanted = [n for n in names if _needed(n, blocks, marker)]
            state = {name: file.get_tensor(name).float() for name in wanted}
    except SafetensorError as error:
        raise _UnfitError(str(error)) from None
    if not official:
        return _huggingface_to_timm(_strip_prefix(state), blocks)
    if "pos_embed" not in state:
        raise _UnfitError("no pos_embed")
    state.pop("mask_token", None)
    return state


def _needed(name: str, blocks: int, marker: str) -> bool:
    """Whether a weight belongs to the embeddings, the norm or one of the first blocks."""
    _, found, rest = name.partition(marker)
    index = rest.split(".", 1)[0]
    return not (found and index.isdigit() and int(index) >= blocks)


def _strip_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off what stands before ``embeddings.`` (the name of the enclosing model, if any)."""
    token = next((n for n in state if n.endswith(_EMBEDDINGS + "cls_token")), None)
    if token is None:
        raise _UnfitError("no class token")
    prefix = token[: -len(_EMBEDDINGS + "cls_token")]
    return {n[len(prefix) :]: v for n, v in state.items() if n.startswith(prefix)}


# --- ONNX ----------------------------------------------------------------------------------------


def _onnx_state(path: Path, blocks: int) -> dict[str, Tensor]:
    """Hugging Face's names -> tensors."""
    export = OnnxExport(path)
    tensors = {
        name: export.tensor(name)
        for name in export.named()
        if _needed(name, blocks, "encoder.layer.")
    }
    for name, constant in export.linear().items():
        if _needed(name, blocks, "encoder.layer."):
            tensors[name] = export.tensor(constant).t()
    state = _strip_prefix(tensors)
    state.setdefault(_EMBEDDINGS + "position_embeddings", _position_embedding(export))
    return state


def _position_embedding(export: OnnxExport) -> Tensor:
    """The embedding added to [class token, patches]: (1, 1 + N, C).

    The graph adds two Concats: the tokens', which starts from the class token, and the
    positions', which puts a (1, 1, C) constant before the resampled (1, N, C) constant.
    """
    producer = {output: node for node in export.nodes for output in node.output}

    def source(name: str) -> str:
        while name in producer and producer[name].op_type in _PASS_THROUGH:
            name = producer[name].input[0]
        return name

    for node in producer.values():
        if node.op_type != "Concat" or len(node.input) != 2:
            continue
        parts = [source(name) for name in node.input]
        if not all(part in export.constants for part in parts):
            continue
        first, rest = (tuple(export.constants[part].dims) for part in parts)
        if len(first) == len(rest) == 3 and first == (1, 1, rest[2]):
            return torch.cat([export.tensor(part) for part in parts], dim=1)
    raise _UnfitError("no position embedding in the graph")


# --- names ---------------------------------------------------------------------------------------

_TOP = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_BLOCK = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "attn.proj.weight": "attention.output.dense.weight",
    "attn.proj.bias": "attention.output.dense.bias",
    "ls1.gamma": "layer_scale1.lambda1",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "mlp.fc1.weight": "mlp.fc1.weight",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.weight": "mlp.fc2.weight",
    "mlp.fc2.bias": "mlp.fc2.bias",
    "ls2.gamma": "layer_scale2.lambda1",
}


def _huggingface_to_timm(state: Mapping[str, Tensor], blocks: int) -> dict[str, Tensor]:
    def take(name: str) -> Tensor:
        if name not in state:
            raise _UnfitError(f"no {name}")
        return state[name]

    out = {timm_name: take(name) for timm_name, name in _TOP.items()}
    for index in range(blocks):
        layer = f"encoder.layer.{index}."
        for timm_name, name in _BLOCK.items():
            out[f"blocks.{index}.{timm_name}"] = take(layer + name)
        for kind in ("weight", "bias"):
            out[f"blocks.{index}.attn.qkv.{kind}"] = torch.cat(
                [take(f"{layer}attention.attention.{p}.{kind}") for p in ("query", "key", "value")]
            )
    return out
