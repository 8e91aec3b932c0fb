"""Profiles: named sets of a detector's parts with their settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.runtime.resources import share_dir

if TYPE_CHECKING:
    from anomaly_detector_ros.part_settings import PartSettings

DEFAULT_PROFILE = "embedded"
_PARTS = ("denoiser", "sampler", "features", "upsampler", "segmenter")
_OPTIONAL = ("distance", "calibration", "lessons")


@dataclass(frozen=True)
class Profile:
    """What a `Detector` is made of.

    The parts stand as a person wrote them; `parts` are the same checked, with their defaults. In a
    file a text with a slash is a path, relative to the file.

    Attributes:
        name: the profile's name.
        title: one line for people.
        denoiser: see `synthesis.denoisers.loading.DenoiserSettings`.
        sampler: ``name`` and settings; see `synthesis.editor.read_edit_settings`.
        features, upsampler, distance, segmenter: ``name`` and its settings.
        calibration: ``file``; empty for none.
        lessons: ``file`` of what `anomaly-detector teach` wrote; empty for none.
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
    lessons: Mapping[str, Any] = field(default_factory=dict)
    threshold: float = 0.3

    @cached_property
    def parts(self) -> PartSettings:
        """The settings of the parts, checked and typed.

        Raises:
            UserError: a part or setting that does not exist, or a value that cannot be.
        """
        # Not at the top: the command line knows of profiles before it needs torch.
        from anomaly_detector_ros.part_settings import read_parts

        sections = {part: getattr(self, part) for part in (*_PARTS, "distance")}
        try:
            return read_parts(sections)
        except UserError as error:
            raise UserError(f"profile '{self.name}': {error}") from error

    def denoiser_is_path(self) -> bool:
        """Whether the denoiser is a model directory rather than a name of the registry."""
        return "/" in str(self.denoiser["model"])

    def model_names(self) -> list[str]:
        """Names of the registry's models that this profile needs."""
        return self.parts.models()


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
    folder = file.absolute().parent
    return {
        name: {
            part: _paths_from(folder, section) if isinstance(section, dict) else section
            for part, section in profile.items()
        }
        for name, profile in content.items()
    }


def _paths_from(folder: Path, section: Mapping[str, Any]) -> dict[str, Any]:
    """A part's settings with absolute paths: texts with a slash, parts' own files, calibrations."""

    def absolute(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return _paths_from(folder, value)
        if isinstance(value, list):
            return [absolute(key, each) for each in value]
        named = isinstance(value, str) and (key == "file" or "/" in value or ".py:" in value)
        return str(folder / Path(value).expanduser()) if named else value

    return {key: absolute(key, value) for key, value in section.items()}


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
    strange = set(merged) - {"title", "threshold", *_PARTS, *_OPTIONAL}
    if strange:
        raise UserError(
            f"profile '{name}' has an unknown part '{min(strange)}': "
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
    for part in (*_PARTS, *_OPTIONAL):
        if not isinstance(merged.get(part, {}), Mapping):
            raise UserError(f"profile '{name}': {part} is not a mapping: write 'SETTING: VALUE'")
    profile = Profile(name=name, **merged)
    for part in ("calibration", "lessons"):
        unknown = sorted(set(getattr(profile, part)) - {"file"})
        if unknown:
            raise UserError(f"profile '{name}': {part} has no setting '{unknown[0]}': give 'file'")
    profile.model_names()  # all parts are read for it, which checks them
    return profile


def _resolve(
    name: str, profiles: Mapping[str, Any], leading: tuple[str, ...] = ()
) -> dict[str, Any]:
    """A profile with what it takes over from its base.

    Args:
        leading: the profiles whose base it is, the first one first.
    """
    if name in leading:
        circle = " -> ".join([*leading[leading.index(name) :], name])
        raise UserError(f"profile '{leading[0]}': its 'base' is a circle ({circle}): break it")
    if name not in profiles:
        raise UserError(f"unknown profile '{name}': choose one of {', '.join(profiles)}")
    own = dict(profiles[name])
    base = own.pop("base", None)
    merged = _resolve(base, profiles, (*leading, name)) if base else {}
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
