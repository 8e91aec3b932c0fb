"""Feature maps of any model of timm: vision transformers and convolutional networks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.features.base import FEATURES, NetworkSettings
from anomaly_detector_ros.features.networks import NetworkFeatures, resample_position_embedding
from anomaly_detector_ros.features.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from anomaly_detector_ros.weights.loading import Loader
from anomaly_detector_ros.weights.published import hub_file, read_state


@FEATURES.register("timm")
@dataclass(frozen=True, kw_only=True)
class Timm(NetworkSettings):
    """Settings of a model of timm; see `TimmFeatures`.

    Attributes:
        model: timm's name, with the tag of its weights: ``vit_small_patch16_224.dino``.
        block: how many blocks (of a transformer) or stages (of a convolutional network, its
            stem counting as one) run; all by default.
        norm: apply the network's final norm, where it has one.
        as_in_featup: run the network as FeatUp's upsamplers were trained on it: pixels normalised
            by ImageNet's mean and deviation rather than by its own, the positions of a vision
            transformer by FeatUp's rule (`resample_position_embedding`), and ChannelNorm
            (`NetworkFeatures`).
    """

    model: str
    block: Annotated[int, Ge(1)] | None = None
    norm: bool = True
    as_in_featup: bool = False

    featup_name: ClassVar[str | None] = None

    @property
    def trained_upsampler(self) -> str | None:
        """See `FeatureSettings`."""
        return self.featup_name if self.as_in_featup else None

    def published(self, loader: Loader) -> Path | None:
        """See `Weighted`."""
        return timm_hub_file(self.model, offline=loader.offline) if self.weights is None else None

    def network(self, weights: Path | None, **options: Any) -> TimmFeatures:
        """See `NetworkSettings`."""
        return TimmFeatures(self, weights, **options)


@FEATURES.register("dino")
@dataclass(frozen=True, kw_only=True)
class Dino(Timm):
    """DINO ViT-S/16."""

    featup_name = "featup_dino16_jbu"

    model: str = "vit_small_patch16_224.dino"


@FEATURES.register("dinov2")
@dataclass(frozen=True, kw_only=True)
class DinoV2OfTimm(Timm):
    """DINOv2 ViT-S/14 with the weights that timm names."""

    featup_name = "featup_dinov2_jbu"

    model: str = "vit_small_patch14_dinov2.lvd142m"


@FEATURES.register("resnet")
@dataclass(frozen=True, kw_only=True)
class ResNet(Timm):
    """ResNet-50."""

    featup_name = "featup_resnet50_jbu"

    model: str = "resnet50.tv_in1k"


@FEATURES.register("vit")
@dataclass(frozen=True, kw_only=True)
class ViT(Timm):
    """ViT-S/16 trained to classify."""

    featup_name = "featup_vit_jbu"

    model: str = "vit_small_patch16_224.augreg_in21k_ft_in1k"


class TimmFeatures(NetworkFeatures):
    """Feature maps of a timm model after a chosen block.

    Of a vision transformer the patch tokens; its position embedding is resampled to the input's
    grid (bicubic, antialiased: timm's ``dynamic_img_size``). Of a convolutional network the
    output of a stage. What is not needed for the block is dropped.

    Args:
        settings: which model, and how much of it.
        weights: a .safetensors or .pth file, or None for random weights.
        input_size, device, dtype: see `NetworkFeatures`.

    Raises:
        UserError: unknown model, setting out of range, or weights that don't fit.
    """

    def __init__(
        self,
        settings: Timm,
        weights: Path | None,
        *,
        input_size: int | tuple[int, int] = 224,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        network = _build(settings.model, weights)
        levels = network.feature_info
        block = settings.block or len(levels)
        if block > len(levels):
            raise UserError(f"block {block}: {settings.model} has blocks 1 to {len(levels)}")
        self._settings, self._index = settings, block - 1
        network.prune_intermediate_layers(
            [self._index], prune_norm=not settings.norm, prune_head=True
        )
        config = network.pretrained_cfg
        super().__init__(
            network,
            channels=levels[self._index]["num_chs"],
            stride=levels[self._index]["reduction"],
            input_size=input_size,
            mean=IMAGENET_MEAN if settings.as_in_featup else tuple(config["mean"]),
            std=IMAGENET_STD if settings.as_in_featup else tuple(config["std"]),
            device=device,
            dtype=dtype,
            channel_norm=settings.as_in_featup,
            any_size=settings.as_in_featup,
        )
        plain = getattr(network, "num_prefix_tokens", 0) == 1 and not network.no_embed_class
        if settings.as_in_featup and plain:
            network._pos_embed = partial(_embed_as_in_featup, network)

    def _maps(self, pixels: Tensor) -> Tensor:
        try:
            (maps,) = self._network.forward_intermediates(
                pixels,
                indices=[self._index],
                norm=self._settings.norm,
                stop_early=True,
                output_fmt="NCHW",
                intermediates_only=True,
            )
        except AssertionError as error:
            side = self._network.pretrained_cfg["input_size"][-1]
            raise UserError(
                f"features {self._settings.model}: {one_line(error, 120)}: set input_size, or "
                f"mode tiles with tile_size {side}"
            ) from None
        return torch.as_tensor(maps)


def _embed_as_in_featup(network: Any, patches: Tensor) -> Tensor:
    """In place of timm's own method: patches (B, h, w, C) -> tokens (B, 1 + h*w, C)."""
    grid = (patches.shape[1], patches.shape[2])
    positions = resample_position_embedding(network.pos_embed, grid, as_in_featup=True)
    token = network.cls_token.expand(len(patches), -1, -1)
    return torch.cat([token, patches.flatten(1, 2)], dim=1) + positions


def timm_hub_file(model: str, *, offline: bool) -> Path:
    """The weights that timm names for ``model``, from Hugging Face.

    Raises:
        UserError: unknown model, one without weights there, or weights that cannot be had.
    """
    import timm

    _check_known(model)
    config = timm.get_pretrained_cfg(model)
    if config is None or not config.hf_hub_id:
        raise UserError(f"features {model}: no weights on Hugging Face: give a file as `weights`")
    name = config.hf_hub_filename or "model.safetensors"
    if not name.endswith(".safetensors"):
        raise UserError(f"features {model}: no safetensors weights: give a file as `weights`")
    return hub_file(model, config.hf_hub_id, name, offline=offline)


def _check_known(model: str) -> None:
    import timm

    # is_model refuses addresses (hf-hub:..., local-dir:...) too, which would be fetched unasked,
    # but does not look at the tag.
    tagged = "." in model
    if not timm.is_model(model) or (tagged and not timm.is_model_pretrained(model)):
        near = timm.list_pretrained(f"*{model.partition('.')[0]}*")[:3]
        known = f"such as {', '.join(near)}" if near else "see timm.list_pretrained()"
        raise UserError(f"features timm: unknown model {model!r}: take one of timm's, {known}")


def _build(model: str, weights: Path | None) -> Any:
    import timm  # slow to import, so only where a network is built

    _check_known(model)
    options: dict[str, Any] = {"num_classes": 0}
    if weights is not None:
        options |= {"pretrained": True, "pretrained_cfg_overlay": _overlay(model, weights)}
    try:
        try:
            network: Any = timm.create_model(model, dynamic_img_size=True, **options)
        except TypeError:  # only vision transformers know it; a convolution takes any size
            network = timm.create_model(model, **options)
    except RuntimeError as error:
        detail = one_line(error, 200)
        raise UserError(f"{weights}: not weights of {model}: {detail}") from None
    network.pretrained_cfg.pop("state_dict", None)  # timm would hold a second copy there
    if not hasattr(network, "forward_intermediates"):
        raise UserError(f"features {model}: gives no intermediate features: take another model")
    return network


def _overlay(model: str, weights: Path) -> dict[str, Any]:
    """What makes timm load these weights, under the publishers' own names too, and all of them.

    timm drops a classifier that the network lacks, but then also accepts a file in which other
    weights are missing; hence it is dropped here, and timm told that there never was one.
    """
    import timm

    state = read_state(weights)
    config = timm.get_pretrained_cfg(model)
    names = (config and config.classifier) or ()
    for name in (names,) if isinstance(names, str) else names:
        state.pop(f"{name}.weight", None)
        state.pop(f"{name}.bias", None)
    return {"state_dict": state, "num_classes": 0, "label_offset": 0}
