"""Segmenters by name: what anomaly maps are averaged over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.segmentation.automatic import AutomaticSegmenter
from anomaly_detector_ros.segmentation.mobile_sam import MobileSamPredictor, mobile_sam_generator
from anomaly_detector_ros.segmentation.prompted import PromptedSegmenter
from anomaly_detector_ros.segmentation.sam import (
    SAM_MODELS,
    SamPointPredictor,
    load_sam,
    random_sam,
    sam_generator,
)
from anomaly_detector_ros.segmentation.superpixels import SuperpixelSegmenter

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

    from anomaly_detector_ros.weights.registry import Registry

__all__ = ["Segmenter", "make_segmenter", "segmenter_names", "weights_needed"]

Settings = Mapping[str, Any]


class Segmenter(Protocol):
    """Cuts an image into disjoint segments.

    Attributes:
        needs_map: whether the segments depend on the anomaly map, or on the image alone.
    """

    needs_map: bool

    def segment(self, image: np.ndarray, anomaly_map: np.ndarray) -> np.ndarray:
        """uint8 RGB (H, W, 3) and float32 (H, W) -> int32 (H, W): ids from 1, 0 = none."""


# The settings of each segmenter, or of a mode of it, and their types.
_PROMPTED = {
    "max_prompts": int,
    "min_distance": float,
    "peak_floor": float,
    "min_quality": float,
    "min_stability": float,
    "min_area_fraction": float,
    "max_area_fraction": float,
    "mask_rule": str,
    "superpixels": int,
}
_GENERATOR = {
    "points_per_side": int,
    "pred_iou_thresh": float,
    "stability_score_thresh": float,
    "min_mask_region_area": int,
}
_AUTOMATIC = {**_GENERATOR, "mask_rule": str, "min_area_fraction": float}
_MODES: dict[str, dict[str, type]] = {"automatic": _AUTOMATIC, "prompted": _PROMPTED}
_DEFAULT_MODE = {"mobile_sam": "prompted", "sam": "automatic"}
_SETTINGS: dict[str, dict[str, type]] = {
    "mobile_sam": {"mode": str},
    "none": {},
    "sam": {"mode": str, "model": str, "weights": str, "seed": int},
    "superpixels": {"count": int, "compactness": float, "max_side": int},
}
_TYPE_NAMES = {int: "a whole number", float: "a number", str: "a text"}
# A profile's section also holds what the detector itself reads.
_DETECTORS_OWN = frozenset({"name", "uncovered"})


def segmenter_names() -> list[str]:
    """Names that ``make_segmenter`` knows."""
    return sorted(_SETTINGS)


def weights_needed(name: str, settings: Settings) -> list[str]:
    """The registry's models that ``make_segmenter`` loads for these settings.

    Raises:
        UserError: unknown name or setting, or a setting of the wrong type.
    """
    own = _own_settings(name, settings)
    if name == "sam":
        return [] if "weights" in own else [f"sam_{own['model']}"]
    return ["mobile_sam"] if name == "mobile_sam" else []


def make_segmenter(
    name: str,
    settings: Settings,
    registry: Registry,
    device: torch.device | str = "cpu",
) -> Segmenter | None:
    """The segmenter called ``name``, its weights from the registry; None for ``none``.

    Args:
        name: one of ``segmenter_names()``.
        settings: as a profile gives them; ``name`` and ``uncovered``, which the detector reads,
            may stand among them. ``superpixels`` takes the arguments of ``SuperpixelSegmenter``.
            ``sam`` and ``mobile_sam`` take ``mode``: "prompted" with the arguments of
            ``PromptedSegmenter``, or "automatic" with those of ``make_generator`` and
            ``AutomaticSegmenter``. ``sam`` also takes ``model`` (vit_h, vit_l or vit_b) and
            ``weights``: a .pth file in place of the registry's, or "random" with a ``seed``.
        registry: finds the weights; not asked where there are none.
        device: where a network runs, if there is one.

    Raises:
        UserError: unknown name or setting, a setting of the wrong type or out of range, or weights
            that are missing or unusable.
    """
    own = _own_settings(name, settings)
    if name == "none":
        return None
    if name == "superpixels":
        return SuperpixelSegmenter(**own)
    automatic = own.pop("mode") == "automatic"
    build = _mobile_sam if name == "mobile_sam" else _sam
    return build(own, automatic, registry, torch.device(device))


def _mobile_sam(
    settings: dict[str, Any], automatic: bool, registry: Registry, device: torch.device
) -> Segmenter:
    folder = registry.path("mobile_sam")
    names = [file.name for file in registry.entry("mobile_sam").files]
    encoders = [name for name in names if "encoder" in name]
    if len(names) != 2 or len(encoders) != 1:
        raise UserError(
            f"model mobile_sam: files {', '.join(names)}: expected an encoder and a decoder"
        )
    (decoder,) = (name for name in names if name not in encoders)
    predictor = MobileSamPredictor(folder / encoders[0], folder / decoder, device=device)
    if not automatic:
        return PromptedSegmenter(predictor, **settings)
    generator = mobile_sam_generator(predictor, **_taken(settings, _GENERATOR))
    return AutomaticSegmenter(generator, **settings)


def _sam(
    settings: dict[str, Any], automatic: bool, registry: Registry, device: torch.device
) -> Segmenter:
    loading = _taken(settings, _SETTINGS["sam"])
    sam = _load_sam(loading, registry, device)
    if not automatic:
        return PromptedSegmenter(SamPointPredictor(sam), **settings)
    return AutomaticSegmenter(sam_generator(sam, **_taken(settings, _GENERATOR)), **settings)


def _load_sam(settings: Settings, registry: Registry, device: torch.device) -> Sam:
    model, weights = settings["model"], settings.get("weights")
    if weights == "random":
        return random_sam(model, settings.get("seed", 0), device=device)
    if "seed" in settings:
        raise UserError("segmenter sam: seed: only with 'weights: random'")
    if weights is not None:
        return load_sam(model, Path(weights).expanduser(), device=device)
    (file,) = registry.entry(f"sam_{model}").files
    return load_sam(model, registry.path(f"sam_{model}") / file.name, device=device)


def _taken(settings: dict[str, Any], names: Mapping[str, type]) -> dict[str, Any]:
    """Those of the settings that have these names, taken out of the others."""
    return {name: settings.pop(name) for name in names if name in settings}


def _own_settings(name: str, settings: Settings) -> dict[str, Any]:
    """The segmenter's own settings, checked by name and type, its mode and model among them."""
    if name not in _SETTINGS:
        raise UserError(f"segmenter {name!r}: unknown: take one of {', '.join(segmenter_names())}")
    own = {key: value for key, value in settings.items() if key not in _DETECTORS_OWN}
    known, title = _SETTINGS[name], name
    if name in _DEFAULT_MODE:
        mode = own.setdefault("mode", _DEFAULT_MODE[name])
        _check_choice(name, "mode", mode, list(_MODES))
        known, title = {**known, **_MODES[mode]}, f"{name}, mode {mode}"
    if name == "sam":
        _check_choice(name, "model", own.setdefault("model", SAM_MODELS[0]), SAM_MODELS)
    unknown = sorted(set(own) - set(known))
    if unknown:
        raise UserError(
            f"segmenter {title}: unknown setting {', '.join(unknown)}: "
            f"take {', '.join(sorted(known)) or 'none'}"
        )
    for key, value in own.items():
        wanted = (int, float) if known[key] is float else known[key]
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise UserError(f"segmenter {name}: {key} {value!r}: take {_TYPE_NAMES[known[key]]}")
    return own


def _check_choice(name: str, setting: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"segmenter {name}: {setting} {value!r}: take one of {', '.join(choices)}")
