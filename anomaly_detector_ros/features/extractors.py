"""Feature extractors by name: where input and edit are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.features.clip import ClipFeatures, clip_hub_file
from anomaly_detector_ros.features.dinov2 import DinoV2Features
from anomaly_detector_ros.features.networks import FeatureExtractor
from anomaly_detector_ros.features.preprocessing import network_size, resize
from anomaly_detector_ros.features.tiling import TiledFeatures
from anomaly_detector_ros.features.timm import TimmFeatures, timm_hub_file
from anomaly_detector_ros.runtime.devices import choose_dtype

if TYPE_CHECKING:
    from anomaly_detector_ros.weights.registry import Registry

__all__ = [
    "DinoV2Features",
    "FeatureExtractor",
    "RgbFeatures",
    "feature_names",
    "make_features",
    "weights_needed",
]

Settings = Mapping[str, Any]
TILE_SIZE = 224


class RgbFeatures:
    """The colours themselves, in [-1, 1], at ``input_size`` or at their own size.

    A baseline: the cosine distance of colours ignores brightness.

    Args:
        input_size: (height, width), the shorter side alone, or None for the images' own size.
        device: where the images are held.
    """

    channels = 3
    stride = 1

    def __init__(
        self,
        *,
        input_size: int | tuple[int, int] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.input_size = input_size
        self.device = torch.device(device)

    def extract(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float in [-1, 1] -> the same as float32, resized to ``input_size``."""
        images = images.to(self.device).float()
        if self.input_size is None:
            return images
        return resize(images, network_size(tuple(images.shape[-2:]), self.input_size, 1))


@dataclass(frozen=True)
class _Kind:
    """How the extractor of one name is built.

    Attributes:
        build: (weights file or None for random ones, **settings) -> the extractor.
        settings: what a profile may set, besides mode, input_size and tile_size.
        defaults: settings that the name stands for.
        published: (settings, offline) -> the publisher's weights file; None where the weights
            are the registry's, under the extractor's name.
    """

    build: Callable[..., FeatureExtractor]
    settings: frozenset[str]
    defaults: Settings = field(default_factory=dict)
    published: Callable[[Settings, bool], Path] | None = None


_COMMON = frozenset({"mode", "input_size", "tile_size"})
_NETWORK = frozenset({"dtype", "weights", "seed"})
_TIMM = _NETWORK | {"model", "block", "norm", "imagenet_pixels"}
_CLIP = _NETWORK | {"model", "pretrained", "imagenet_pixels"}


def _rgb(weights: None, **options: Any) -> FeatureExtractor:
    return RgbFeatures(**options)


def _timm(weights: Path | None, *, model: str, **options: Any) -> FeatureExtractor:
    return TimmFeatures(model, weights, **options)


def _timm_weights(settings: Settings, offline: bool) -> Path:
    return timm_hub_file(settings["model"], offline=offline)


def _clip(weights: Path | None, *, model: str, **options: Any) -> FeatureExtractor:
    return ClipFeatures(model, weights, **options)


def _clip_weights(settings: Settings, offline: bool) -> Path:
    return clip_hub_file(settings["model"], settings["pretrained"], offline=offline)


def _timm_kind(**defaults: Any) -> _Kind:
    return _Kind(_timm, _TIMM, defaults, _timm_weights)


def _clip_kind(dense: str) -> _Kind:
    defaults = {"model": "ViT-B-16", "pretrained": "openai", "dense": dense}
    return _Kind(_clip, _CLIP, defaults, _clip_weights)


_DINOV2 = _Kind(DinoV2Features, _NETWORK | {"block", "norm"})
_KINDS: dict[str, _Kind] = {
    "clip": _clip_kind("clip"),
    "dino": _timm_kind(model="vit_small_patch16_224.dino"),
    "dinov2": _timm_kind(model="vit_small_patch14_dinov2.lvd142m"),
    "dinov2_vits14": _DINOV2,
    "dinov2_vits14_focus": _DINOV2,
    "maskclip": _clip_kind("maskclip"),
    "resnet": _timm_kind(model="resnet50.tv_in1k"),
    "rgb": _Kind(_rgb, frozenset()),
    "timm": _timm_kind(),
    "vit": _timm_kind(model="vit_small_patch16_224.augreg_in21k_ft_in1k"),
}


def feature_names() -> list[str]:
    """Names that ``make_features`` knows."""
    return sorted(_KINDS)


def weights_needed(name: str, settings: Settings) -> list[str]:
    """The registry's models that ``make_features`` will look for; see there.

    Raises:
        UserError: unknown name.
    """
    kind = _kind(name)
    weights = str(settings.get("weights", ""))
    if weights:
        return [] if weights == "random" or "/" in weights else [weights]
    return [name] if "weights" in kind.settings and kind.published is None else []


def make_features(
    name: str,
    settings: Settings,
    registry: Registry,
    device: torch.device | str,
    *,
    offline: bool = False,
) -> FeatureExtractor:
    """The extractor called ``name``.

    Args:
        name: one of ``feature_names()``; ``timm`` takes any model of timm by its ``model``.
        settings: the extractor's own keyword arguments, as a profile gives them; ``dtype`` may
            be a string (``"auto"``, ``"float32"``, ``"bfloat16"``), ``input_size`` a list, and
            ``name`` may stand among them. Besides: ``mode``, ``whole`` (the default) or
            ``tiles``, with ``tile_size`` (224; see `TiledFeatures`); ``weights``, a file's path
            (with a slash in it), a model of the registry, or ``random``, with ``seed`` (0). By
            default the weights are the publisher's, from Hugging Face or the registry.
        registry: finds the weights that it has.
        device: where the extractor runs.
        offline: never touch the network.

    Raises:
        UserError: unknown name or setting, or weights that cannot be had.
    """
    kind = _kind(name)
    options = _options(name, settings, kind, torch.device(device))
    mode = options.pop("mode", "whole")
    if mode not in ("whole", "tiles"):
        raise UserError(f"features {name}: mode {mode!r}: take whole or tiles")
    if mode == "whole" and "tile_size" in options:
        raise UserError(f"features {name}: tile_size: only with `mode: tiles`")
    size = options.pop("input_size", None)
    tile_size = int(options.pop("tile_size", TILE_SIZE))
    if mode == "tiles":
        options["input_size"] = (tile_size, tile_size)
    elif size is not None:
        options["input_size"] = size
    extractor = _build(name, kind, options, registry, offline)
    if mode == "whole":
        return extractor
    return TiledFeatures(extractor, tile_size=tile_size, input_size=size)


def _kind(name: str) -> _Kind:
    if name not in _KINDS:
        raise UserError(f"features {name!r}: unknown: take one of {', '.join(feature_names())}")
    return _KINDS[name]


def _options(name: str, settings: Settings, kind: _Kind, device: torch.device) -> dict[str, Any]:
    """The settings, checked and in the constructors' types, with the kind's defaults."""
    given = {key: value for key, value in settings.items() if key != "name"}
    allowed = kind.settings | _COMMON
    unknown = sorted(set(given) - allowed)
    if unknown:
        raise UserError(
            f"features {name}: unknown setting {', '.join(unknown)}: "
            f"take {', '.join(sorted(allowed))}"
        )
    options = {**kind.defaults, **given, "device": device}
    if "model" in allowed and "model" not in options:
        raise UserError(f"features {name}: name the network: `model: vit_small_patch16_224.dino`")
    if options.get("input_size") is not None:
        options["input_size"] = _size(name, options["input_size"])
    if isinstance(options.get("dtype"), str):
        options["dtype"] = choose_dtype(options["dtype"], device)
    return options


def _size(name: str, value: Any) -> int | tuple[int, int]:
    try:
        if isinstance(value, int):
            return value
        height, width = (int(v) for v in value)
    except (TypeError, ValueError):
        raise UserError(
            f"features {name}: input_size {value!r}: give [height, width] or the shorter side"
        ) from None
    return height, width


def _build(
    name: str, kind: _Kind, options: dict[str, Any], registry: Registry, offline: bool
) -> FeatureExtractor:
    if "weights" not in kind.settings:
        return kind.build(None, **options)
    weights, seed = options.pop("weights", None), options.pop("seed", None)
    if weights != "random":
        if seed is not None:
            raise UserError(f"features {name}: seed: only with `weights: random`")
        if weights is not None and "/" in str(weights):
            file = Path(weights).expanduser()
        elif weights is None and kind.published is not None:
            file = kind.published(options, offline)
        else:
            file = _only_file(weights or name, registry)
        return kind.build(file, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        return kind.build(None, **options)


def _only_file(name: str, registry: Registry) -> Path:
    files = registry.entry(name).files
    if len(files) != 1:
        raise UserError(f"model {name}: {len(files)} files in the registry: expected one")
    return registry.path(name) / files[0].name
