"""Patch features of an intermediate block of DINOv2 ViT-S/14 (timm's implementation)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_detector_ros.analysis.dinov2_weights import load_dinov2_weights
from anomaly_detector_ros.analysis.preprocessing import IMAGENET_MEAN, IMAGENET_STD, normalise
from anomaly_detector_ros.errors import UserError, one_line

PATCH = 14
BLOCKS = 12


class DinoV2Features:
    """Patch tokens of DINOv2 ViT-S/14 after a chosen block.

    Only the blocks that are needed are built, read from the file and run.

    Args:
        weights: an ``.onnx`` or ``.safetensors`` file (see ``dinov2_weights``), or None for
            random weights.
        block: how many of the 12 blocks run, 1 to 12. The last blocks mix the whole image, so
            that a small change shows everywhere; an intermediate one localises it.
        input_size: (height, width) in pixels at which the network sees the images; both are
            multiples of 14.
        device: where the network runs.
        dtype: of the matrix products: ``torch.float32`` or ``torch.bfloat16`` (norms, the
            residual stream and the result stay float32).
        norm: apply the backbone's final norm to the tokens.

    Raises:
        UserError: a setting out of range, or weights that don't fit.
    """

    channels = 384

    def __init__(
        self,
        weights: Path | None,
        *,
        block: int = 9,
        input_size: tuple[int, int] = (266, 504),
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        norm: bool = False,
    ) -> None:
        height, width = input_size
        if not 1 <= block <= BLOCKS:
            raise UserError(f"block {block}: DINOv2 ViT-S/14 has blocks 1 to {BLOCKS}")
        if height < PATCH or width < PATCH or height % PATCH or width % PATCH:
            raise UserError(f"input_size {height}x{width}: take multiples of {PATCH} pixels")
        if dtype not in (torch.float32, torch.bfloat16):
            raise UserError(f"dtype {dtype}: take float32 or bfloat16")
        self.block = block
        self.input_size = (int(height), int(width))
        self.device = torch.device(device)
        self.dtype = dtype
        self._model = _build(weights, block, self.input_size, norm).to(self.device)
        if dtype is torch.bfloat16:
            # Autocast would convert the weights anew in every call.
            for module in self._model.modules():
                if isinstance(module, (nn.Linear, nn.Conv2d)):
                    module.to(dtype)

    @torch.inference_mode()
    def extract(self, images: Tensor) -> Tensor:
        """Features of images (B, 3, H, W) in [-1, 1], of any size: (B, 384, h, w) float32.

        h, w = ``input_size`` / 14, whatever the images' size.
        """
        pixels = normalise(images.to(self.device), self.input_size, IMAGENET_MEAN, IMAGENET_STD)
        with torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.dtype is torch.bfloat16
        ):
            tokens = self._model.forward_features(pixels)
        patches = tokens[:, self._model.num_prefix_tokens :].float()
        grid = (self.input_size[0] // PATCH, self.input_size[1] // PATCH)
        return patches.transpose(1, 2).unflatten(2, grid).contiguous()


def _build(weights: Path | None, block: int, input_size: tuple[int, int], norm: bool) -> nn.Module:
    import timm  # slow to import, so only where a network is built

    model = timm.create_model(
        "vit_small_patch14_dinov2",
        pretrained=False,
        num_classes=0,
        depth=block,
        img_size=input_size,
    )
    if weights is not None:
        state = load_dinov2_weights(weights, block)
        grid = (input_size[0] // PATCH, input_size[1] // PATCH)
        state["pos_embed"] = resample_position_embedding(state["pos_embed"], grid)
        try:
            model.load_state_dict(state, assign=True)
        except RuntimeError as error:
            detail = one_line(error, 200)
            raise UserError(f"{weights}: not DINOv2 ViT-S/14 weights: {detail}") from None
    if not norm:
        model.norm = nn.Identity()
    return model.eval().requires_grad_(False)


def resample_position_embedding(embedding: Tensor, grid: tuple[int, int]) -> Tensor:
    """(1, 1 + N, C) of a square grid -> (1, 1 + h*w, C) for grid (h, w); class token first.

    Bicubic without antialiasing, as the official ViT-S/14 (without registers) and the published
    ONNX graph do it.
    """
    token, patches = embedding[:, :1], embedding[:, 1:]
    side = round(patches.shape[1] ** 0.5)
    if side * side != patches.shape[1]:
        raise UserError(f"position embedding of {patches.shape[1]} patches: not a square grid")
    if (side, side) == grid:
        return embedding
    planes = patches.transpose(1, 2).unflatten(2, (side, side))
    planes = F.interpolate(planes, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([token, planes.flatten(2).transpose(1, 2)], dim=1)
