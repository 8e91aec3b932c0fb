"""Parts that plug in: each a frozen dataclass of settings, registered by name in its own file.

A room has one `PartRegistry`. A part's file decorates the part's dataclass, and nothing else names
it. What a profile writes for the part goes through `PartRegistry.read`, the one place where
settings are checked::

    @DISTANCES.register("cosine")
    @dataclass(frozen=True)
    class Cosine:
        power: Annotated[float, Gt(0)] = 1.0
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from anomaly_detector_ros.errors import UserError, as_user_error, one_line

Part = TypeVar("Part")
PartClass = TypeVar("PartClass", bound=type)


class PartRegistry(Generic[Part]):
    """Parts of one kind by name.

    Args:
        kind: what the parts are called in messages, such as ``distance``.
        package: the dotted name of the package whose modules register the built-in ones. They
            are imported when the first name is looked up.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self._package = kind, package
        self._classes: dict[str, type[Part]] = {}
        self._complete = False

    def register(self, name: str) -> Callable[[PartClass], PartClass]:
        """Makes the decorated frozen dataclass the part of this name.

        Raises:
            ValueError: another class has the name.
        """

        def add(part: PartClass) -> PartClass:
            known = self._classes.setdefault(name, part)
            if known is not part and known.__qualname__ != part.__qualname__:
                raise ValueError(f"two {self.kind} parts are named '{name}'")
            self._classes[name] = part
            return part

        return add

    def names(self) -> list[str]:
        """Names of all parts known by now, sorted."""
        if not self._complete:
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self._package}.{module.name}")
            self._complete = True
        return sorted(self._classes)

    def get(self, name: str) -> type[Part]:
        """The dataclass of this name.

        ``package.module:name`` and ``path/to/file.py:name`` import the module or the file first,
        so that a part can live outside of this package.

        Raises:
            UserError: no such part; its module cannot be imported.
        """
        module, _, own = str(name).rpartition(":")
        known = self.names()
        if module:
            _import(module, self.kind)
            known = self.names()
        if own not in known:
            raise UserError(
                f"unknown {self.kind} '{one_line(name, 60)}'{_hint(own, known)}: "
                f"choose one of {', '.join(known)}, or give FILE.py:NAME for your own"
            )
        return self._classes[own]

    def name_of(self, part: Part) -> str | None:
        """The name of a part's class; None where it has none here."""
        return next((name for name, known in self._classes.items() if known is type(part)), None)

    def read(self, settings: Mapping[str, Any], where: str | None = None) -> Part:
        """The part that ``settings`` describe: its ``name``, and what its dataclass holds.

        Args:
            where: what the settings belong to, for messages; the part's kind and name by default.

        Raises:
            UserError: an unknown name; see also `read_settings`.
        """
        if "name" not in settings:
            raise UserError(f"a {self.kind} needs a name: choose one of {', '.join(self.names())}")
        rest = {key: value for key, value in settings.items() if key != "name"}
        name = settings["name"]
        return read_settings(self.get(name), rest, where or f"{self.kind} {name}")


Settings = TypeVar("Settings")


def read_settings(kind: type[Settings], values: Mapping[str, Any], where: str) -> Settings:
    """An instance of a dataclass from what a person wrote.

    Types are those of the annotations; ranges come from ``Annotated[float, Gt(0)]`` and the like
    (the ``annotated_types`` package, or pydantic's ``Field``). A number may be written as text,
    since YAML takes 1e4 for text; true and false are no numbers.

    Args:
        kind: a dataclass.
        where: what the settings belong to, for messages: ``sampler few_step``.

    Raises:
        UserError: a setting that does not exist, is missing, of a wrong type or out of range. The
            message names it, says what it must be, and the nearest known name.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Blur:
        ...     width: int = 3
        >>> read_settings(Blur, {"width": "5"}, "filter blur")
        Blur(width=5)
        >>> read_settings(Blur, {"widht": 5}, "filter blur")
        Traceback (most recent call last):
        anomaly_detector_ros.errors.UserError: filter blur has no setting 'widht' (did you mean \
'width'?): known are width
    """
    known = [field.name for field in fields(kind) if field.init]  # type: ignore[arg-type]
    check_names(values, known, where)
    for key, value in values.items():
        if isinstance(value, bool) and _is_number(kind, key):
            raise UserError(f"{where}: {key} is {value}: give a number")
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        errors = error.errors(include_url=False)
        first = errors[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] in ("missing", "missing_argument"):
            raise UserError(f"{where} lacks the setting '{key}': add it") from None
        alike = [each for each in errors if each["loc"][:1] == first["loc"][:1]]
        value = first["input"]
        if len(alike) > 1:  # one for each of the types that the setting may have
            key = str(first["loc"][0])
            value = values[key]
        given = one_line(repr(value), 60)
        reasons = (
            each["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
            for each in alike
        )
        wanted = " or ".join(dict.fromkeys(reasons))
        if not key:  # the dataclass's own check of settings that must fit together
            raise UserError(f"{where}: {wanted}") from None
        raise UserError(f"{where}: {key} is {given}: it must be {wanted}") from None


def check_names(values: Iterable[Any], known: Sequence[str], where: str) -> None:
    """Refuses settings that do not exist, as `read_settings` does.

    Raises:
        UserError: one of ``values`` is not among the ``known`` names.
    """
    for key in values:
        if key not in known:
            listed = f"known are {', '.join(known)}" if known else "it has none"
            raise UserError(
                f"{where} has no setting '{one_line(key, 60)}'{_hint(str(key), known)}: {listed}"
            )


def _is_number(kind: type, key: str) -> bool:
    annotation = str(next(f.type for f in fields(kind) if f.name == key))
    return "bool" not in annotation and ("int" in annotation or "float" in annotation)


def _hint(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def _import(module: str, kind: str) -> ModuleType:
    with as_user_error(f"cannot import '{module}' for a {kind}", "correct its path or mend it"):
        if not module.endswith(".py"):
            return importlib.import_module(module)
        file = Path(module).expanduser().resolve()
        name = f"anomaly_detector_part_{file.stem}_{abs(hash(str(file))):x}"
        if name in sys.modules:
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise ImportError("not a Python file")
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[name] = loaded  # dataclasses look their annotations up there
        try:
            spec.loader.exec_module(loaded)
        except BaseException:
            del sys.modules[name]
            raise
    return loaded
