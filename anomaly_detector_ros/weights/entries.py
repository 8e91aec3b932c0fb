"""The registry file: each model, its files with size and sha256, and where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from annotated_types import Ge, MinLen
from pydantic import InstanceOf, Strict

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.runtime.parts import read_settings
from anomaly_detector_ros.weights.packages import (
    NpmPackageSource,
    PythonPackageSource,
    RelativePath,
)
from anomaly_detector_ros.weights.sources import (
    GoogleDriveSource,
    HuggingFaceSource,
    LocalSource,
    Source,
    Text,
    UrlSource,
    matching,
)

SOURCES: Mapping[str, type[Source]] = {
    "local": LocalSource,
    "url": UrlSource,
    "google_drive": GoogleDriveSource,
    "huggingface": HuggingFaceSource,
    "python": PythonPackageSource,
    "npm": NpmPackageSource,
}
"""Every kind of source, as the registry file names it."""

Name = Annotated[
    str,
    matching(r"[A-Za-z0-9][A-Za-z0-9._-]*", "made of letters, digits, dot, dash and underscore"),
]
Sha256 = Annotated[str, matching(r"[0-9a-f]{64}", "64 lower-case hex digits")]


@dataclass(frozen=True)
class FileEntry:
    """One file: its name inside the model's directory, size in bytes, hex sha256, and sources.

    Size and sha256 may be None (not checked) only for files that ship with the package or that
    the user provides.
    """

    name: RelativePath
    bytes: Annotated[int, Strict(), Ge(0)] | None = None
    sha256: Sha256 | None = None
    sources: tuple[InstanceOf[Source], ...] = ()


@dataclass(frozen=True)
class ModelEntry:
    """One model: registry name, title, licence of the weights, project it comes from, files.

    `shipped` names the directory beside the registry file for a model that comes with this
    package; it is None for a model that is kept in the cache. `by_hand` tells how a user gets a
    model that cannot be fetched; it is None for one that can.
    """

    name: Name
    title: Text
    licence: Text
    project: Text
    files: Annotated[tuple[FileEntry, ...], MinLen(1)]
    shipped: RelativePath | None = None
    by_hand: Text | None = None

    @property
    def bytes(self) -> int:
        """Size of all files, as far as it is declared."""
        return sum(file.bytes or 0 for file in self.files)


def load_entries(path: Path) -> dict[str, ModelEntry]:
    """The entries of the registry file `path`, in its order.

    Raises:
        UserError: unreadable, not YAML, or an entry that is not as it must be.
    """
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: install the package again") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {one_line(error)}") from error
    models = content.get("models") if isinstance(content, dict) else None
    if not isinstance(models, dict):
        raise UserError(f"{path}: has no mapping `models`")
    return {name: _model(name, body, path) for name, body in models.items()}


def _model(name: object, body: object, path: Path) -> ModelEntry:
    where = f"{path}: model {name!r}"
    settings = _mapping(body, where)
    files = enumerate(_listed(settings, "files", where), 1)
    entries = tuple(_file(file, f"{where}: file {i}", path.parent) for i, file in files)
    entry = read_settings(ModelEntry, {**settings, "name": name, "files": entries}, where)
    if len({file.name for file in entries}) < len(entries):
        raise UserError(f"{where}: two files have the same name: list each once")
    fetched = entry.shipped is None and entry.by_hand is None
    for file in entries:
        if fetched and None in (file.bytes, file.sha256):
            raise UserError(f"{where}: {file.name} lacks `bytes` or `sha256`: add both")
        if fetched != bool(file.sources):
            raise UserError(
                f"{where}: {file.name}: `sources` must be a list, empty only for a shipped or "
                "by_hand model"
            )
    return entry


def _file(body: object, where: str, base: Path) -> FileEntry:
    settings = _mapping(body, where)
    sources = tuple(_source(source, where, base) for source in _listed(settings, "sources", where))
    return read_settings(FileEntry, {**settings, "sources": sources}, where)


def _source(body: object, where: str, base: Path) -> Source:
    settings, known = _mapping(body, where), ", ".join(SOURCES)
    if len(settings) != 1:
        raise UserError(f"{where}: a source has one key, its kind: give one of {known}")
    ((kind, value),) = settings.items()
    if kind not in SOURCES:
        raise UserError(f"{where}: unknown kind of source '{kind}': give one of {known}")
    make = SOURCES[kind]
    # What a kind needs most may stand alone.
    given = value if isinstance(value, dict) else {fields(make)[0].name: value}  # type: ignore[arg-type]
    source = read_settings(make, given, f"{where}: {kind}")
    if isinstance(source, LocalSource) and not source.path.startswith(("~", "$")):
        return replace(source, path=str(base / source.path))
    return source


def _mapping(body: object, where: str) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise UserError(f"{where} must be a mapping, not {one_line(repr(body), 60)}")
    return {str(key): value for key, value in body.items()}


def _listed(settings: Mapping[str, Any], key: str, where: str) -> list[Any]:
    value = settings.get(key) or []
    if not isinstance(value, list):
        raise UserError(f"{where}: `{key}` must be a list")
    return value
