"""MobileSAM's network with weights from its published ONNX files.

Zhang et al. 2023, "Faster Segment Anything": SAM's prompt encoder and mask decoder behind an image
encoder of 6 million parameters (TinyViT, Wu et al. 2022). ONNX files fix the size of the image at
1024x1024, of which a wide picture fills the half; here the encoder takes images of any size.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.weights.onnx_weights import OnnxExport

STRIDE = 16
"""Pixels a side that one cell of the encoder's map stands for."""

_CHANNELS = 256


class MobileSamNetwork(nn.Module):
    """The three parts of SAM; `load_mobile_sam` fills them."""

    def __init__(self) -> None:
        from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer

        super().__init__()
        self.image_encoder = _ImageEncoder()
        self.prompt_encoder: Any = PromptEncoder(
            embed_dim=_CHANNELS,
            image_embedding_size=(64, 64),
            input_image_size=(1024, 1024),
            mask_in_chans=16,
        )
        self.mask_decoder = MaskDecoder(
            transformer_dim=_CHANNELS,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=_CHANNELS, mlp_dim=2048, num_heads=8
            ),
        )

    def positions(self, grid: tuple[int, int], side: int) -> Tensor:
        """The part (1, C, h, w) of a square image's positions that an image's grid covers.

        Args:
            grid: h and w.
            side: cells along each side of the square.
        """
        whole: Tensor = self.prompt_encoder.pe_layer((side, side))
        return whole[None, :, : grid[0], : grid[1]]


class _ImageEncoder(nn.Module):
    """Normalised pixels (B, 3, H, W) -> (B, 256, H / 16, W / 16)."""

    def __init__(self) -> None:
        import timm  # slow to import, so only where a network is built
        from segment_anything.modeling.common import LayerNorm2d

        super().__init__()
        vit: Any = timm.create_model("tiny_vit_5m_224", pretrained=False, num_classes=0)
        # MobileSAM halves the resolution once less than the classifier does.
        vit.stages[3].downsample.conv2.conv.stride = (1, 1)
        _fuse_norms(vit)
        self.patch_embed: nn.Module = vit.patch_embed
        self.stages: nn.Module = vit.stages
        self.neck = nn.Sequential(
            nn.Conv2d(320, _CHANNELS, 1, bias=False),
            LayerNorm2d(_CHANNELS),
            nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1, bias=False),
            LayerNorm2d(_CHANNELS),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        maps: Tensor = self.neck(self.stages(self.patch_embed(pixels)))
        return maps


def _fuse_norms(module: nn.Module) -> None:
    """Puts the batch norms into the convolutions before them, as exports have them."""
    child: Any
    for name, child in module.named_children():
        if hasattr(child, "fuse"):
            setattr(module, name, child.fuse())
        else:
            _fuse_norms(child)


def load_mobile_sam(encoder: Path, decoder: Path) -> MobileSamNetwork:
    """The network with the weights of its published files, float32 on the CPU.

    Args:
        encoder: the image encoder's ONNX file.
        decoder: that of prompt encoder and mask decoder.

    Raises:
        UserError: a file is missing, or not such a network's.
    """
    images, prompts = OnnxExport(encoder), OnnxExport(decoder)
    network = MobileSamNetwork()
    try:
        state = _encoder_state(images, network.image_encoder)
        state = {f"image_encoder.{name}": weights for name, weights in state.items()}
        network.load_state_dict(state | _decoder_state(prompts, network))
    except (RuntimeError, ValueError, LookupError) as error:
        detail = one_line(error, 200)
        raise UserError(
            f"{encoder}, {decoder}: not MobileSAM's encoder and decoder: fetch them again "
            f"({detail})"
        ) from None
    return network


def _encoder_state(export: OnnxExport, encoder: nn.Module) -> dict[str, Tensor]:
    state = {name.replace("layers.", "stages.", 1): w for name, w in _named_state(export).items()}
    # Convolutions lost their names with their norms; they run in the order of the modules.
    convolutions = _modules(encoder, lambda each: isinstance(each, nn.Conv2d))
    runs = [node for node in export.nodes if node.op_type == "Conv"]
    for (name, _), node in zip(convolutions, runs, strict=True):
        for kind, constant in zip(("weight", "bias"), node.input[1:], strict=False):
            state[f"{name}.{kind}"] = export.tensor(constant)
    # A table holds the bias of every pair of tokens, the module that of every offset.
    attentions = _modules(encoder, lambda each: hasattr(each, "attention_biases"))
    tables = _used(export, lambda dims: len(dims) == 3 and dims[1] == dims[2] > 1)
    for (name, each), table in zip(attentions, tables, strict=True):
        biases = torch.empty_like(each.attention_biases)
        biases[:, each.attention_bias_idxs.flatten()] = table.flatten(1)
        state[f"{name}.attention_biases"] = biases
    return {**state, **_plane_norms(export, encoder)}


def _decoder_state(export: OnnxExport, network: MobileSamNetwork) -> dict[str, Tensor]:
    """The weights of prompt encoder and mask decoder."""
    state = {name.removeprefix("model."): w for name, w in _named_state(export).items()}
    (tokens,) = _used(export, lambda dims: len(dims) == 3 and dims[:2] == [1, 5])
    state["mask_decoder.iou_token.weight"] = tokens[0, :1]
    state["mask_decoder.mask_tokens.weight"] = tokens[0, 1:]
    (no_mask,) = _used(export, lambda dims: dims == [1, _CHANNELS, 1, 1])
    state["prompt_encoder.no_mask_embed.weight"] = no_mask.flatten(1)
    prompts = {"prompt_encoder": network.prompt_encoder, "mask_decoder": network.mask_decoder}
    return {**state, **_plane_norms(export, nn.ModuleDict(prompts))}


def _named_state(export: OnnxExport) -> dict[str, Tensor]:
    linear = {name: export.tensor(constant).t() for name, constant in export.linear().items()}
    return {**{name: export.tensor(name) for name in export.named()}, **linear}


def _plane_norms(export: OnnxExport, module: nn.Module) -> dict[str, Tensor]:
    """Scale and shift of SAM's norms over channels, which are used in the modules' order."""
    from segment_anything.modeling.common import LayerNorm2d

    norms = [name for name, _ in _modules(module, lambda each: isinstance(each, LayerNorm2d))]
    names = [f"{name}.{kind}" for name in norms for kind in ("weight", "bias")]
    values = _used(export, lambda dims: len(dims) == 3 and dims[1:] == [1, 1])
    return {name: each.flatten() for name, each in zip(names, values, strict=True)}


def _used(export: OnnxExport, fits: Callable[[list[int]], bool]) -> list[Tensor]:
    """The constants of such dimensions that something is multiplied by or added to, in order."""
    return [
        export.tensor(constant)
        for node in export.nodes
        if node.op_type in ("Mul", "Add", "Expand")
        for constant in node.input
        if constant in export.constants and fits(list(export.constants[constant].dims))
    ]


def _modules(module: nn.Module, fits: Callable[[nn.Module], bool]) -> list[tuple[str, Any]]:
    return [(name, each) for name, each in module.named_modules() if fits(each)]
