"""Variants of a profile, listed in a YAML file as grids of settings."""

from __future__ import annotations

import glob
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.profiles import Profile, load_profile

UNCHANGED = "the profile itself"
_SHAPE = "'grids: [{PART.SETTING: [VALUE, ...], ...}, ...]'"

# Of the parts of a path that a name may need.
_LONGEST = 40

Changes = Mapping[str, Any]
"""Values by ``PART.SETTING``."""


@dataclass(frozen=True)
class Variant:
    """One profile of a sweep.

    Attributes:
        name: how it differs from the profile it is made from, for people.
        changes: the same for programs; empty for the profile itself.
        profile: the result.
    """

    name: str
    changes: Changes
    profile: Profile


def load_variants(file: Path, profile: str) -> list[Variant]:
    """The profile itself, then every variant of it that a file lists, each once.

    The file holds a list ``grids``. A grid has a list of values for each of its settings and
    stands for all their combinations; a value alone is a list of one. A value that is itself a
    list stands in a list of lists: ``denoiser.size: [[96, 176]]``. In ``denoiser.model``, a path
    with ``*`` stands for the directories that match, in order.

    Args:
        profile: as `profiles.load_profile` takes it.

    Raises:
        UserError: the file cannot be read or is none; a grid names a setting that cannot be; no
            directory matches.
    """
    grids = _read(file)
    varied: dict[str, list[Any]] = {}
    for grid in grids:
        for setting, values in grid.items():
            varied.setdefault(setting, []).extend(values)
    unchanged = load_profile(profile)
    variants = [Variant(UNCHANGED, {}, unchanged)]
    for grid in grids:
        for changes in _combinations(grid):
            changed = load_profile(profile, overrides=_nested(changes, file))
            if all(changed != other.profile for other in variants):
                variants.append(Variant(_name(changes, varied), changes, changed))
    return [
        replace(v, profile=replace(v.profile, name=f"{unchanged.name}: {v.name}"))
        if v.changes
        else v
        for v in variants
    ]


def _read(file: Path) -> list[dict[str, list[Any]]]:
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = one_line(error, 200)
        raise UserError(f"cannot read the sweep '{file}' ({reason}): mend the file") from error
    grids = content.get("grids") if isinstance(content, dict) and len(content) == 1 else None
    if not isinstance(grids, list) or not all(isinstance(grid, dict) and grid for grid in grids):
        raise UserError(f"'{file}' is not a sweep: expected {_SHAPE}")
    return [
        {
            str(setting): _matching(setting, values if isinstance(values, list) else [values])
            for setting, values in grid.items()
        }
        for grid in grids
    ]


def _matching(setting: str, values: Sequence[Any]) -> list[Any]:
    """The values, of ``denoiser.model`` with the directories that patterns stand for."""
    if setting != "denoiser.model":
        return list(values)
    found: list[Any] = []
    for value in map(str, values):
        if "*" not in value:
            found.append(value)
            continue
        matches = sorted(glob.glob(str(Path(value).expanduser())))
        # What a killed run left half-written is no model.
        folders = [m for m in matches if Path(m).is_dir() and not m.endswith(".partial")]
        if not folders:
            raise UserError(f"denoiser.model '{value}' matches no directory: check the path")
        found += folders
    return found


def _combinations(grid: Mapping[str, Sequence[Any]]) -> Iterator[Changes]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _nested(changes: Changes, file: Path) -> dict[str, dict[str, Any]]:
    """Changes as `load_profile` takes them: by part, then by setting."""
    nested: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        part, dot, setting = name.partition(".")
        if not (part and dot and setting):
            raise UserError(f"'{file}' varies '{name}': write PART.SETTING, as in sampler.steps")
        nested.setdefault(part, {})[setting] = value
    return nested


def _name(changes: Changes, varied: Mapping[str, list[Any]]) -> str:
    """Each setting, without its part where no other part has one of that name, and its value."""
    shown = []
    for setting, value in changes.items():
        part, _, name = setting.partition(".")
        if name == "name":
            name = part
        elif sum(other.partition(".")[2] == name for other in varied) > 1:
            name = f"{part} {name}"
        shown.append(f"{name} {_text(value, varied[setting])}")
    return ", ".join(shown)


def _text(value: Any, values: Sequence[Any]) -> str:
    """A value as short as tells it from the other values of its setting."""
    others = [other for other in values if other != value]
    for length in range(1, _LONGEST):
        text = _shortened(value, length)
        if all(text != _shortened(other, length) for other in others):
            return text
    return str(value)


def _shortened(value: Any, length: int) -> str:
    """Only so many of the last parts of a path, or decimals of a number (and five more)."""
    if isinstance(value, (list, tuple)):
        return "x".join(map(str, value))
    if isinstance(value, float):
        return f"{value:.{5 + length}g}"
    return str(Path(*Path(value).parts[-length:])) if isinstance(value, str) else str(value)
