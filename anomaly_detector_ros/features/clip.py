"""Dense features of CLIP's vision transformers (open_clip): MaskCLIP and projected tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.features.base import FEATURES, NetworkSettings
from anomaly_detector_ros.features.networks import NetworkFeatures, resample_position_embedding
from anomaly_detector_ros.features.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from anomaly_detector_ros.weights.loading import Loader
from anomaly_detector_ros.weights.published import hub_file, read_state

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_SAFETENSORS = "open_clip_model.safetensors"
# CLIP is built whole; only its vision tower is kept, so the text tower is made tiny.
_TINY_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}


@FEATURES.register("maskclip")
@dataclass(frozen=True, kw_only=True)
class MaskClip(NetworkSettings):
    """Settings of MaskCLIP; see `ClipFeatures`.

    Attributes:
        dense: what becomes of the last block.
        model: open_clip's name of the architecture, a plain vision transformer.
        pretrained: open_clip's tag of the weights, which says how the network was trained
            (activation, mean and deviation of the pixels); None for one without a tag.
        as_in_featup: run the network as FeatUp's upsamplers were trained on it: pixels normalised
            by ImageNet's mean and deviation rather than by CLIP's, positions by FeatUp's rule
            (`resample_position_embedding`), and of CLIP, not of MaskCLIP, ChannelNorm
            (`NetworkFeatures`).
    """

    dense: ClassVar[Literal["maskclip", "clip"]] = "maskclip"

    model: str = "ViT-B-16"
    pretrained: str | None = "openai"
    as_in_featup: bool = False

    @property
    def trained_upsampler(self) -> str | None:
        """See `FeatureSettings`."""
        return f"featup_{self.dense}_jbu" if self.as_in_featup else None

    def published(self, loader: Loader) -> Path | None:
        """See `Weighted`."""
        if self.weights is not None:
            return None
        return clip_hub_file(self.model, self.pretrained, offline=loader.offline)

    def network(self, weights: Path | None, **options: Any) -> ClipFeatures:
        """See `NetworkSettings`."""
        return ClipFeatures(self, weights, **options)


@FEATURES.register("clip")
@dataclass(frozen=True, kw_only=True)
class Clip(MaskClip):
    """Settings of CLIP's patch tokens; see `ClipFeatures`."""

    dense = "clip"


class ClipFeatures(NetworkFeatures):
    """Patch features of a CLIP vision transformer in the space it shares with text.

    With ``dense="maskclip"`` the last block's attention is left out: each patch keeps its own
    value, c = proj(ln_post(W_out (W_v ln_1(x) + b_v) + b_out)), without the residual and the
    MLP, so that a patch's feature is about that patch (Zhou et al., "Extract Free Dense Labels
    from CLIP", ECCV 2022; FeatUp's MaskCLIP). With ``dense="clip"`` the last block runs as
    trained and its patch tokens are projected in the same way. ViT-B/16 gives 512 channels.

    The position embedding is resampled to the input's grid. For the tokens of an intermediate
    block take timm's model of the same network, ``vit_base_patch16_clip_224.openai``.

    Args:
        settings: which model, and how its last block runs.
        weights: a .safetensors or .pt file of the whole CLIP model with open_clip's names, or
            None for random weights.
        input_size, device, dtype: see `NetworkFeatures`.

    Raises:
        UserError: unknown model or tag, setting out of range, or weights that don't fit.
    """

    def __init__(
        self,
        settings: MaskClip,
        weights: Path | None,
        *,
        input_size: int | tuple[int, int] = 224,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        tag = _tag(settings.model, settings.pretrained)
        network = _build(settings.model, weights, quick_gelu=bool(tag.get("quick_gelu")))
        own = not settings.as_in_featup
        super().__init__(
            network,
            channels=network.proj.shape[1],
            stride=network.patch_size[0],
            input_size=input_size,
            mean=tag.get("mean", CLIP_MEAN) if own else IMAGENET_MEAN,
            std=tag.get("std", CLIP_STD) if own else IMAGENET_STD,
            device=device,
            dtype=dtype,
            channel_norm=settings.as_in_featup and settings.dense == "clip",
            any_size=settings.as_in_featup,
        )
        self._dense, self._as_in_featup = settings.dense, settings.as_in_featup

    def _maps(self, pixels: Tensor) -> Tensor:
        network = self._network
        patches: Tensor = network.conv1(pixels)
        grid = (patches.shape[-2], patches.shape[-1])
        patches = patches.flatten(2).transpose(1, 2).float()
        token = network.class_embedding.expand(len(patches), 1, -1)
        positions = resample_position_embedding(
            network.positional_embedding[None], grid, as_in_featup=self._as_in_featup
        )
        x: Tensor = network.ln_pre(torch.cat([token, patches], dim=1) + positions)
        *blocks, last = network.transformer.resblocks
        for block in blocks:
            x = block(x)
        x = _value_path(last, x) if self._dense == "maskclip" else last(x)
        x = network.ln_post(x[:, 1:]) @ network.proj
        maps: Tensor = x.transpose(1, 2).unflatten(2, grid)
        return maps


def _value_path(block: Any, x: Tensor) -> Tensor:
    """What a block's attention returns where every token attends to itself alone."""
    attention = block.attn
    width = attention.embed_dim
    # The rows of in_proj are the queries', the keys' and the values'.
    value = F.linear(
        block.ln_1(x), attention.in_proj_weight[-width:], attention.in_proj_bias[-width:]
    )
    projected: Tensor = attention.out_proj(value)
    return projected


def clip_hub_file(model: str, pretrained: str | None, *, offline: bool) -> Path:
    """The weights that open_clip names for ``model`` and ``pretrained``, from Hugging Face.

    Always a safetensors file: OpenAI's own files are TorchScript, which would be executed.

    Raises:
        UserError: unknown model or tag, or weights that cannot be had.
    """
    what = f"{model} {pretrained or ''}".strip()
    repo, _, name = _tag(model, pretrained).get("hf_hub", "").rpartition("/")
    if not repo:
        raise UserError(f"features {what}: no weights on Hugging Face: give a file as `weights`")
    file = f"{Path(name).stem}.safetensors" if name else _SAFETENSORS
    return hub_file(what, repo, file, offline=offline)


def _open_clip() -> Any:
    try:
        import open_clip  # slow to import, so only where a network is built
    except ImportError:
        raise UserError("CLIP features need open_clip: pip install open_clip_torch") from None
    return open_clip


def _tag(model: str, pretrained: str | None) -> dict[str, Any]:
    """What open_clip knows of the weights ``pretrained`` of ``model``; empty for None."""
    open_clip = _open_clip()
    if open_clip.get_model_config(model) is None:
        raise UserError(f"features clip: unknown model {model!r}: take open_clip's, ViT-B-16")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained is not None and pretrained not in tags:
        known = f"take one of {', '.join(tags)}" if tags else "set `pretrained: null` and `weights`"
        raise UserError(f"features {model}: unknown weights {pretrained!r}: {known}")
    return open_clip.get_pretrained_cfg(model, pretrained) if pretrained else {}


def _build(model: str, weights: Path | None, *, quick_gelu: bool) -> Any:
    open_clip = _open_clip()
    config = open_clip.get_model_config(model)
    network = open_clip.CLIP(
        config["embed_dim"],
        config["vision_cfg"],
        _TINY_TEXT,
        quick_gelu=quick_gelu or config.get("quick_gelu", False),
    ).visual
    blocks = getattr(getattr(network, "transformer", None), "resblocks", None)
    if blocks is None or not isinstance(blocks[-1].attn, nn.MultiheadAttention):
        raise UserError(
            f"features {model}: not a plain vision transformer: take a ViT, such as ViT-B-16"
        )
    if weights is not None:
        try:
            network.load_state_dict(read_state(weights, prefix="visual."), assign=True)
        except RuntimeError as error:
            detail = one_line(error, 200)
            raise UserError(f"{weights}: not weights of {model}: {detail}") from None
        network.float()  # some are stored as float16
    return network
