"""What was given to the node at start and means nothing to it, told in one line each.

ROS takes any name and any file in silence. No rclpy.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

_FILE_OPTION = "--params-file"
_PARAMETERS = "ros__parameters"
_NEAR = 0.6
"""Likeness of two names from which one may be meant by the other, as `difflib` has it."""


def unknown_parameters(given: Iterable[str], known: Iterable[str]) -> list[str]:
    """Of each name given that is not known: that it is not, and the nearest one that is.

    >>> unknown_parameters(["treshold"], ["threshold", "max_rate"])
    ["unknown parameter 'treshold': did you mean 'threshold'?"]
    """
    names = sorted(known)
    return [
        f"unknown parameter '{name}'" + _hint(name, names)
        for name in sorted(given)
        if name not in names
    ]


def _hint(name: str, known: Sequence[str]) -> str:
    """The nearest name, or the one whose last part is nearest, as where a prefix was left out."""

    def likeness(other: str) -> tuple[float, float]:
        whole = _ratio(name, other)
        return max(whole, _ratio(_last(name), _last(other))), whole

    if not known:
        return " is left aside"
    nearest = max(known, key=likeness)
    near = likeness(nearest)[0] >= _NEAR
    return f": did you mean '{nearest}'?" if near else " is left aside"


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def foreign_files(arguments: Sequence[str], node: str) -> list[str]:
    """Of each parameter file that holds nothing for the node: whom it is for.

    A file for several nodes, this one among them, is none of these.

    Args:
        arguments: of the process; files follow ``--params-file``.
        node: the node's fully qualified name.
    """
    files = [
        Path(value) for option, value in itertools.pairwise(arguments) if option == _FILE_OPTION
    ]
    told = []
    for file in files:
        try:
            names = list(_nodes(yaml.safe_load(file.read_text())))
        except (OSError, ValueError, yaml.YAMLError):  # rcl says so itself
            continue
        if names and not any(_matches(name, node) for name in names):
            others = ", ".join(f"'{name}'" for name in names[:3]) + (" ..." if names[3:] else "")
            told.append(
                f"parameter file '{file}' is for {others}, this node is '{node}': nothing of it is "
                f"in force; name the node in it '{node}' or '/**'"
            )
    return told


def _nodes(tree: Any, name: str = "") -> Iterator[str]:
    """Full names, or patterns, of the nodes that a parameter file has something for."""
    if not isinstance(tree, dict):
        return
    for key, value in tree.items():
        if key == _PARAMETERS:
            yield name or "/"
        else:
            yield from _nodes(value, f"{name}/{str(key).strip('/')}")


def _matches(pattern: str, node: str) -> bool:
    """Whether a name of a parameter file is a node's; ``*`` is one part of it, ``**`` any."""
    return _parts_match(pattern.strip("/").split("/"), node.strip("/").split("/"))


def _parts_match(pattern: list[str], parts: list[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_parts_match(pattern[1:], parts[start:]) for start in range(len(parts) + 1))
    return bool(parts) and pattern[0] in ("*", parts[0]) and _parts_match(pattern[1:], parts[1:])
