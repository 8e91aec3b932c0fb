"""Profiles: named sets of a detector's parts with their settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.runtime.resources import share_dir

DEFAULT_PROFILE = "embedded"
_PARTS = ("denoiser", "sampler", "features", "upsampler", "segmenter")
_OPTIONAL = ("distance", "calibration")
# Settings without which a part means nothing; the others have defaults.
_REQUIRED = {
    "denoiser": ("model", "size"),
    "features": ("name",),
    "upsampler": ("name",),
    "segmenter": ("name",),
    "distance": ("name",),
}


@dataclass(frozen=True)
class Profile:
    """What a `Detector` is made of.

    Attributes:
        name: the profile's name.
        title: one line for people.
        denoiser: ``model`` (registry name, or a directory's path, with a slash in it), ``size``
            (height, width), ``dtype``, ``compile`` (auto, none, graph or compile; see
            `synthesis.denoisers.compiled`).
        sampler: ``name`` and settings; see `synthesis.editor.read_edit_settings`.
        features: ``name`` and settings; see `features.extractors.make_features`.
        upsampler: ``name`` and settings; see `features.upsampling.make_upsampler`.
        distance: ``name`` (cosine or whitened) and settings; see `distances.base`.
        segmenter: ``name`` and settings; ``uncovered``: see `averaging.segment_average`.
        calibration: ``file``, absolute or relative to the profiles file; empty for none.
        threshold: heatmap value in [0, 1] from which a pixel is an anomaly.
    """

    name: str
    title: str = ""
    denoiser: Mapping[str, Any] = field(default_factory=dict)
    sampler: Mapping[str, Any] = field(default_factory=dict)
    features: Mapping[str, Any] = field(default_factory=dict)
    upsampler: Mapping[str, Any] = field(default_factory=dict)
    distance: Mapping[str, Any] = field(default_factory=lambda: {"name": "cosine"})
    segmenter: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    threshold: float = 0.3

    def denoiser_is_path(self) -> bool:
        """Whether the denoiser is a model directory rather than a name of the registry."""
        return "/" in str(self.denoiser["model"])

    def model_names(self) -> list[str]:
        """Names of the registry's models that this profile needs."""
        # Not at the top: the command line reads profiles before it needs torch.
        from anomaly_detector_ros.features import extractors, upsampling
        from anomaly_detector_ros.segmentation import segmenters

        names = [] if self.denoiser_is_path() else [str(self.denoiser["model"])]
        names += extractors.weights_needed(self.features["name"], self.features)
        names += upsampling.weights_needed(self.upsampler["name"], self.upsampler)
        names += segmenters.weights_needed(self.segmenter["name"], self.segmenter)
        return list(dict.fromkeys(names))


def _profiles_file(models_dir: Path | None = None) -> Path:
    return (models_dir or share_dir("models")) / "profiles.yaml"


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = one_line(error, 200)
        raise UserError(f"cannot read profiles from '{file}' ({reason}): mend the file") from error
    if not isinstance(content, dict) or not all(isinstance(p, dict) for p in content.values()):
        raise UserError(f"'{file}' is not a profiles file: expected 'NAME: {{denoiser: ...}}'")
    for profile in content.values():
        calibration = profile.get("calibration")
        if isinstance(calibration, dict) and calibration.get("file"):
            calibrated = Path(str(calibration["file"])).expanduser()
            calibration["file"] = str(file.absolute().parent / calibrated)
    return content


def profile_names(models_dir: Path | None = None) -> list[str]:
    """Names of the installed profiles."""
    return list(_read(_profiles_file(models_dir)))


def load_profile(
    name: str,
    *,
    models_dir: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Profile:
    """A profile by name, or the first one of a YAML file if ``name`` ends in .yaml.

    Args:
        name: profile name or path of a profiles file.
        models_dir: directory with another ``profiles.yaml``; the installed one by default.
        overrides: settings to change, by part: ``{"sampler": {"steps": 4}, "threshold": 0.2}``.

    Raises:
        UserError: the profile, one of its parts or a setting's part is unknown.
    """
    profiles = _read(_profiles_file(models_dir))
    if name.endswith((".yaml", ".yml")):
        own = _read(Path(name))
        profiles |= own  # its profiles may have an installed one as their base
        name = next(iter(own), name)
    merged = _resolve(name, profiles)
    _merge(merged, overrides or {})
    unknown = set(merged) - {"title", "threshold", *_PARTS, *_OPTIONAL}
    if unknown:
        raise UserError(
            f"profile '{name}' has an unknown part '{min(unknown)}': "
            f"known are {', '.join((*_PARTS, *_OPTIONAL))}, threshold and title"
        )
    # Written as null it takes away what the base has.
    merged = {part: value for part, value in merged.items() if value is not None}
    missing = [part for part in _PARTS if part not in merged]
    if missing:
        raise UserError(f"profile '{name}' lacks the part '{missing[0]}': add it or a 'base'")
    threshold = merged.get("threshold", 0)
    if not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
        given = one_line(threshold, 60)
        raise UserError(f"profile '{name}': threshold {given} is not a number in [0, 1]")
    _check_parts(name, merged)
    return Profile(name=name, **merged)


def _check_parts(name: str, parts: Mapping[str, Any]) -> None:
    for part in (*_PARTS, *_OPTIONAL):
        if not isinstance(parts.get(part, {}), Mapping):
            raise UserError(f"profile '{name}': {part} is not a mapping: write 'SETTING: VALUE'")
    for part, settings in _REQUIRED.items():
        for setting in settings:
            if part in parts and setting not in parts[part]:
                raise UserError(f"profile '{name}': {part} lacks the setting '{setting}': add it")
    unknown = sorted(set(parts.get("calibration", {})) - {"file"})
    if unknown:
        raise UserError(f"profile '{name}': calibration has no setting '{unknown[0]}': give 'file'")


def _resolve(name: str, profiles: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    if name not in profiles or depth > len(profiles):
        raise UserError(f"unknown profile '{name}': choose one of {', '.join(profiles)}")
    own = dict(profiles[name])
    base = own.pop("base", None)
    merged = _resolve(base, profiles, depth + 1) if base else {}
    _merge(merged, own)
    return merged


def _merge(target: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Settings of ``changes`` replace those of ``target``; a part with a new name replaces it."""
    for key, value in changes.items():
        old = target.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            renamed = "name" in value and value["name"] != old.get("name")
            target[key] = dict(value) if renamed else {**old, **value}
        else:
            target[key] = value
