"""Segmenters by name: what anomaly maps are averaged over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from anomaly_detector_ros.analysis.mobile_sam import MobileSamPredictor, MobileSamSegmenter
from anomaly_detector_ros.analysis.superpixels import SuperpixelSegmenter
from anomaly_detector_ros.errors import UserError

if TYPE_CHECKING:
    from anomaly_detector_ros.models.registry import Registry

__all__ = [
    "MobileSamPredictor",
    "MobileSamSegmenter",
    "Segmenter",
    "SuperpixelSegmenter",
    "make_segmenter",
    "segmenter_names",
]

Settings = Mapping[str, Any]
# A profile's section also holds what the detector itself reads.
_DETECTORS_OWN = frozenset({"name", "uncovered"})


class Segmenter(Protocol):
    """Cuts an image into disjoint segments."""

    def segment(self, image: np.ndarray, anomaly_map: np.ndarray) -> np.ndarray:
        """uint8 RGB (H, W, 3) and float32 (H, W) -> int32 (H, W): ids from 1, 0 = none."""


def _mobile_sam(settings: dict[str, Any], registry: Registry, device: torch.device) -> Segmenter:
    folder = registry.path("mobile_sam")
    names = [file.name for file in registry.entry("mobile_sam").files]
    encoders = [name for name in names if "encoder" in name]
    if len(names) != 2 or len(encoders) != 1:
        raise UserError(
            f"model mobile_sam: files {', '.join(names)}: expected an encoder and a decoder"
        )
    (decoder,) = (name for name in names if name not in encoders)
    return MobileSamSegmenter(folder / encoders[0], folder / decoder, device=device, **settings)


def _superpixels(settings: dict[str, Any], registry: Registry, device: torch.device) -> Segmenter:
    return SuperpixelSegmenter(**settings)


def _none(settings: dict[str, Any], registry: Registry, device: torch.device) -> None:
    return None


_Builder = Callable[[dict[str, Any], "Registry", torch.device], "Segmenter | None"]
_BUILDERS: dict[str, tuple[_Builder, frozenset[str]]] = {
    "mobile_sam": (
        _mobile_sam,
        frozenset(
            {
                "max_prompts",
                "min_distance",
                "peak_floor",
                "min_quality",
                "min_stability",
                "min_area_fraction",
                "max_area_fraction",
                "superpixels",
            }
        ),
    ),
    "superpixels": (_superpixels, frozenset({"count", "compactness", "max_side"})),
    "none": (_none, frozenset()),
}


def segmenter_names() -> list[str]:
    """Names that ``make_segmenter`` knows."""
    return sorted(_BUILDERS)


def make_segmenter(
    name: str,
    settings: Settings,
    registry: Registry,
    device: torch.device | str = "cpu",
) -> Segmenter | None:
    """The segmenter called ``name``, its weights from the registry; None for ``none``.

    Args:
        name: one of ``segmenter_names()``.
        settings: the segmenter's own keyword arguments, as a profile gives them; ``name`` and
            ``uncovered``, which the detector reads, may stand among them.
        registry: finds the weights; not asked where there are none.
        device: where a network runs, if there is one.

    Raises:
        UserError: unknown name or setting, a setting out of range, or weights not fetched.
    """
    if name not in _BUILDERS:
        raise UserError(f"segmenter {name!r}: unknown: take one of {', '.join(segmenter_names())}")
    build, allowed = _BUILDERS[name]
    own = {key: value for key, value in settings.items() if key not in _DETECTORS_OWN}
    unknown = sorted(set(own) - allowed)
    if unknown:
        raise UserError(
            f"segmenter {name}: unknown setting {', '.join(unknown)}: "
            f"take {', '.join(sorted(allowed)) or 'none'}"
        )
    return build(own, registry, torch.device(device))
