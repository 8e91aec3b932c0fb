"""Feature extractors by name: where input and edit are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from anomaly_detector_ros.analysis.dinov2 import DinoV2Features
from anomaly_detector_ros.analysis.preprocessing import resize
from anomaly_detector_ros.devices import choose_dtype
from anomaly_detector_ros.errors import UserError

if TYPE_CHECKING:
    from anomaly_detector_ros.models.registry import Registry

__all__ = ["DinoV2Features", "FeatureExtractor", "RgbFeatures", "feature_names", "make_features"]

Settings = Mapping[str, Any]


class FeatureExtractor(Protocol):
    """Turns images into feature maps."""

    channels: int

    def extract(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float in [-1, 1], any size -> (B, channels, h, w) float32."""


class RgbFeatures:
    """The colours themselves, in [-1, 1], at ``input_size`` (height, width) or at their own size.

    A baseline: the cosine distance of colours ignores brightness.
    """

    channels = 3

    def __init__(
        self,
        *,
        input_size: tuple[int, int] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.input_size = input_size
        self.device = torch.device(device)

    def extract(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float in [-1, 1] -> the same as float32, resized to ``input_size``."""
        images = images.to(self.device).float()
        return images if self.input_size is None else resize(images, self.input_size)


def _dinov2(
    name: str, settings: Settings, registry: Registry, device: torch.device
) -> FeatureExtractor:
    options = _options(name, settings, {"block", "input_size", "dtype", "norm"}, device)
    return DinoV2Features(_only_file(name, registry), device=device, **options)


def _rgb(
    name: str, settings: Settings, registry: Registry, device: torch.device
) -> FeatureExtractor:
    return RgbFeatures(device=device, **_options(name, settings, {"input_size"}, device))


_Builder = Callable[[str, Settings, "Registry", torch.device], FeatureExtractor]
_BUILDERS: dict[str, _Builder] = {
    "dinov2_vits14_focus": _dinov2,
    "dinov2_vits14": _dinov2,
    "rgb": _rgb,
}


def feature_names() -> list[str]:
    """Names that ``make_features`` knows."""
    return sorted(_BUILDERS)


def make_features(
    name: str, settings: Settings, registry: Registry, device: torch.device | str
) -> FeatureExtractor:
    """The extractor called ``name``, its weights from the registry.

    Args:
        name: one of ``feature_names()``.
        settings: the extractor's own keyword arguments, as a profile gives them; ``dtype`` may
            be a string (``"auto"``, ``"float32"``, ``"bfloat16"``), ``input_size`` a list, and
            ``name`` may stand among them.
        registry: finds the weights; not asked where there are none.
        device: where the extractor runs.

    Raises:
        UserError: unknown name or setting, or weights not fetched.
    """
    if name not in _BUILDERS:
        raise UserError(f"features {name!r}: unknown: take one of {', '.join(feature_names())}")
    return _BUILDERS[name](name, settings, registry, torch.device(device))


def _options(
    name: str, settings: Settings, allowed: set[str], device: torch.device
) -> dict[str, Any]:
    options = {key: value for key, value in settings.items() if key != "name"}
    unknown = sorted(set(options) - allowed)
    if unknown:
        raise UserError(
            f"features {name}: unknown setting {', '.join(unknown)}: "
            f"take {', '.join(sorted(allowed))}"
        )
    if options.get("input_size") is not None:
        options["input_size"] = _size(name, options["input_size"])
    if isinstance(options.get("dtype"), str):
        options["dtype"] = choose_dtype(options["dtype"], device)
    return options


def _size(name: str, value: Any) -> tuple[int, int]:
    try:
        height, width = (int(v) for v in value)
    except (TypeError, ValueError):
        raise UserError(f"features {name}: input_size {value!r}: give [height, width]") from None
    return height, width


def _only_file(name: str, registry: Registry) -> Path:
    files = registry.entry(name).files
    if len(files) != 1:
        raise UserError(f"model {name}: {len(files)} files in the registry: expected one")
    return registry.path(name) / files[0].name
