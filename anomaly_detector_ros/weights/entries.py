"""The registry file: each model, its files with size and sha256, and where they come from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.weights.packages import NpmPackageSource, PythonPackageSource
from anomaly_detector_ros.weights.sources import (
    GoogleDriveSource,
    HuggingFaceSource,
    LocalSource,
    Source,
    UrlSource,
)


@dataclass(frozen=True)
class FileEntry:
    """One file: its name inside the model's directory, size in bytes, hex sha256, and sources.

    Size and sha256 may be None (not checked) only for files that ship with the package or that
    the user provides.
    """

    name: str
    bytes: int | None
    sha256: str | None
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True)
class ModelEntry:
    """One model: registry name, title, licence of the weights, project it comes from, files.

    `shipped` names the directory beside the registry file for a model that comes with this
    package; it is None for a model that is kept in the cache. `by_hand` tells how a user gets a
    model that cannot be fetched; it is None for one that can.
    """

    name: str
    title: str
    licence: str
    project: str
    files: tuple[FileEntry, ...]
    shipped: str | None = None
    by_hand: str | None = None

    @property
    def bytes(self) -> int:
        """Size of all files, as far as it is declared."""
        return sum(file.bytes or 0 for file in self.files)


class _EntryError(Exception):
    """What is wrong in an entry, without saying in which one."""


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
    entries = {}
    for name, body in models.items():
        try:
            entries[name] = _model(name, body, path.parent)
        except _EntryError as error:
            raise UserError(f"{path}: model {name!r}: {error}") from None
    return entries


def _model(name: object, body: object, base: Path) -> ModelEntry:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise _EntryError("a name is made of letters, digits, dot, dash and underscore")
    fields = _mapping(body, {"title", "licence", "project", "files", "shipped", "by_hand"}, "it")
    shipped = None if fields.get("shipped") is None else _relative(fields["shipped"])
    by_hand = None if fields.get("by_hand") is None else _text(fields, "by_hand")
    fetched = shipped is None and by_hand is None
    files = fields.get("files")
    if not isinstance(files, list) or not files:
        raise _EntryError("`files` must be a list with at least one file")
    entry = ModelEntry(
        name=name,
        title=_text(fields, "title"),
        licence=_text(fields, "licence"),
        project=_text(fields, "project"),
        files=tuple(_file(file, fetched, base) for file in files),
        shipped=shipped,
        by_hand=by_hand,
    )
    if len({file.name for file in entry.files}) < len(entry.files):
        raise _EntryError("two files have the same name")
    return entry


def _file(body: object, fetched: bool, base: Path) -> FileEntry:
    fields = _mapping(body, {"name", "bytes", "sha256", "sources"}, "a file")
    name = _relative(_text(fields, "name"))
    size, sha256 = fields.get("bytes"), fields.get("sha256")
    if (fetched or size is not None) and (type(size) is not int or size < 0):
        raise _EntryError(f"{name}: `bytes` must be the file's size")
    if (fetched or sha256 is not None) and not (
        isinstance(sha256, str) and re.fullmatch(r"[0-9a-f]{64}", sha256)
    ):
        raise _EntryError(f"{name}: `sha256` must be 64 lower-case hex digits")
    sources = fields.get("sources") or []
    if not isinstance(sources, list) or bool(sources) != fetched:
        raise _EntryError(
            f"{name}: `sources` must be a list, empty only for a shipped or by_hand model"
        )
    return FileEntry(name, size, sha256, tuple(_source(source, base) for source in sources))


def _source(body: object, base: Path) -> Source:
    if not isinstance(body, dict) or len(body) != 1:
        raise _EntryError("a source must have one key: its kind")
    kind, value = next(iter(body.items()))
    if kind == "local":
        return LocalSource(_local(_text(body, kind), base))
    if kind == "url":
        if not re.match(r"https?://", _text(body, kind)):
            raise _EntryError(f"`url` must be http or https, not {value!r}")
        return UrlSource(value)
    if kind == "google_drive":
        return GoogleDriveSource(_text(body, kind))
    if kind == "huggingface":
        fields = _mapping(value, {"repo", "file", "revision"}, "`huggingface`")
        revision = _text(fields, "revision") if "revision" in fields else "main"
        return HuggingFaceSource(_text(fields, "repo"), _text(fields, "file"), revision)
    if kind in ("python", "npm"):
        fields = _mapping(value, {"package", "file", "archive_bytes"}, f"`{kind}`")
        size = fields.get("archive_bytes")
        if type(size) is not int or size <= 0:
            raise _EntryError(
                f"`{kind}`: `archive_bytes` must be the size of the package's archive"
            )
        make = PythonPackageSource if kind == "python" else NpmPackageSource
        return make(_text(fields, "package"), _relative(_text(fields, "file")), size)
    raise _EntryError(f"unknown kind of source {kind!r}")


def _local(path: str, base: Path) -> str:
    """Relative to the registry file, unless absolute or beginning with `~` or a variable."""
    return path if path.startswith(("~", "$")) else str(base / path)


def _mapping(body: object, allowed: set[str], what: str) -> Mapping[str, Any]:
    if not isinstance(body, dict):
        raise _EntryError(f"{what} must be a mapping")
    unknown = sorted(str(key) for key in body if key not in allowed)
    if unknown:
        raise _EntryError(f"{what} has unknown keys: {', '.join(unknown)}")
    return body


def _text(fields: Mapping[str, Any], key: str) -> str:
    value = fields.get(key)
    # A leading dash would read as an option where the text is given to a command.
    if not isinstance(value, str) or not value.strip() or value.startswith("-"):
        raise _EntryError(f"`{key}` must be a text")
    return value.strip()


def _relative(path: object) -> str:
    """A path that stays inside the directory it is joined to."""
    if not isinstance(path, str):
        raise _EntryError("a path must be a text")
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\\" in path:
        raise _EntryError(f"{path!r} must be a relative path without ..")
    return str(pure)
