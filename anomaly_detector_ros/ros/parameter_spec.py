"""What is said of one parameter of the node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Spec:
    """One parameter.

    Attributes:
        name, default, text: as ``ros2 param describe`` shows them.
        minimum, maximum: range of a number, both included; None: not a number.
        constraints: what else a value must fulfil, in words.
        read_only: only set at start.
        live: may change at any time; otherwise only while the node is unconfigured.
    """

    name: str
    default: Any
    text: str
    minimum: float | None = None
    maximum: float | None = None
    constraints: str = ""
    read_only: bool = False
    live: bool = False
