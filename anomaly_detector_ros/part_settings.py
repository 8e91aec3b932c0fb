"""What a detector is made of: the settings of its parts, checked and typed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from anomaly_detector_ros.distances.base import DISTANCES, DistanceSettings
from anomaly_detector_ros.features.base import FEATURES, FeatureSettings
from anomaly_detector_ros.features.upsampling import UPSAMPLERS, UpsamplerSettings
from anomaly_detector_ros.runtime.parts import PartRegistry, read_settings
from anomaly_detector_ros.segmentation.base import SEGMENTERS, SegmenterSettings
from anomaly_detector_ros.synthesis.denoisers.loading import DenoiserSettings
from anomaly_detector_ros.synthesis.editor import EditSettings, read_edit_settings
from anomaly_detector_ros.weights.loading import Weighted, is_path

Sections = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class PartSettings:
    """The parts of a detector, as `Profile` describes them."""

    denoiser: DenoiserSettings
    sampler: EditSettings
    features: FeatureSettings
    upsampler: UpsamplerSettings
    segmenter: SegmenterSettings
    distance: DistanceSettings

    @property
    def weighted(self) -> dict[str, Weighted]:
        """The parts that may load weights, by the profile's names of them."""
        return {
            "denoiser": self.denoiser,
            "features": self.features,
            "upsampler": self.upsampler,
            "segmenter": self.segmenter,
        }

    def models(self) -> list[str]:
        """The registry's models that must be fetched, each once."""
        return list(dict.fromkeys(m for part in self.weighted.values() for m in part.models()))


def describe(part: object) -> dict[str, Any]:
    """A part's name and all of its settings, but for paths: what lies there is what counts.

    As JSON gives them back.

    Args:
        part: a dataclass of settings, or a mapping of them.
    """
    if isinstance(part, Mapping):
        settings = dict(part)
    else:
        settings = {"name": part_name(part), **asdict(part)}  # type: ignore[call-overload]
    paths = {key for key, value in settings.items() if isinstance(value, str) and is_path(value)}
    given = {key: value for key, value in settings.items() if key not in paths}
    return {key: value for key, value in json.loads(json.dumps(given)).items() if value is not None}


def part_name(part: object) -> str | None:
    """The name that a profile gives the part; None for a denoiser, which has no kinds."""
    registries: tuple[PartRegistry[Any], ...] = (FEATURES, UPSAMPLERS, SEGMENTERS, DISTANCES)
    return next((name for each in registries if (name := each.name_of(part))), None)


def read_parts(sections: Sections) -> PartSettings:
    """The settings of a profile's parts.

    Args:
        sections: what a person wrote, by the part.

    Raises:
        UserError: an unknown part; a setting that does not exist, is missing or of a wrong value.
    """
    return PartSettings(
        denoiser=read_settings(DenoiserSettings, sections["denoiser"], "denoiser"),
        sampler=read_edit_settings(sections["sampler"]),
        features=FEATURES.read(sections["features"]),
        upsampler=UPSAMPLERS.read(sections["upsampler"]),
        segmenter=SEGMENTERS.read(sections["segmenter"]),
        distance=DISTANCES.read(sections["distance"]),
    )
