"""Patch features of an intermediate block of DINOv2 ViT-S/14 (timm's implementation)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.features.base import FEATURES, NetworkSettings
from anomaly_detector_ros.features.dinov2_weights import load_dinov2_weights
from anomaly_detector_ros.features.networks import NetworkFeatures, resample_position_embedding
from anomaly_detector_ros.features.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    check_input_size,
)

PATCH = 14
BLOCKS = 12


@FEATURES.register("dinov2_vits14")
@dataclass(frozen=True, kw_only=True)
class DinoV2(NetworkSettings):
    """Settings of DINOv2 ViT-S/14, with its official weights; see `DinoV2Features`.

    Attributes:
        block: how many of the 12 blocks run. The last blocks mix the whole image, so that a small
            change shows everywhere; an intermediate one localises it.
        norm: apply the backbone's final norm to the tokens.
    """

    own_weights: ClassVar[str] = "dinov2_vits14"

    block: Annotated[int, Ge(1), Le(BLOCKS)] = 9
    norm: bool = False

    def weights_used(self) -> tuple[str, ...]:
        """See `Weighted`."""
        return (self.own_weights,) if self.weights is None else super().weights_used()

    def network(self, weights: Path | None, **options: Any) -> DinoV2Features:
        """See `NetworkSettings`."""
        return DinoV2Features(self, weights, **options)


@FEATURES.register("dinov2_vits14_focus")
@dataclass(frozen=True, kw_only=True)
class DinoV2Focus(DinoV2):
    """Settings of DINOv2 ViT-S/14, with weights that were tuned further for saliency."""

    own_weights = "dinov2_vits14_focus"


class DinoV2Features(NetworkFeatures):
    """Patch tokens of DINOv2 ViT-S/14 after a chosen block.

    Only the blocks that are needed are built, read from the file and run.

    Args:
        settings: how much of it.
        weights: an ``.onnx`` or ``.safetensors`` file (see ``dinov2_weights``), or None for
            random weights.
        input_size: (height, width) in pixels at which the network sees the images; both are
            multiples of 14.
        device, dtype: see `NetworkFeatures`.

    Raises:
        UserError: a setting out of range, or weights that don't fit.
    """

    def __init__(
        self,
        settings: DinoV2,
        weights: Path | None,
        *,
        input_size: tuple[int, int] = (266, 504),
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if isinstance(input_size, int):
            raise UserError(f"input_size {input_size}: give [height, width]")
        check_input_size(input_size, PATCH)
        super().__init__(
            _build(weights, settings.block, input_size, settings.norm),
            channels=384,
            stride=PATCH,
            input_size=input_size,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            device=device,
            dtype=dtype,
        )

    def _maps(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self._network.forward_features(pixels)
        patches = tokens[:, self._network.num_prefix_tokens :]
        grid = (pixels.shape[-2] // PATCH, pixels.shape[-1] // PATCH)
        maps: Tensor = patches.transpose(1, 2).unflatten(2, grid)
        return maps


def _build(weights: Path | None, block: int, input_size: tuple[int, int], norm: bool) -> nn.Module:
    import timm  # slow to import, so only where a network is built

    # Weights that a file will replace are not made up first.
    with torch.device("cpu" if weights is None else "meta"):
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
    return model
