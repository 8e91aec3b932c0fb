"""Random changes to bytes and documents, the same for the same generator."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np
import yaml

_INTERESTING = [0, 1, 2, 3, 127, 128, 255, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]
_WIDTHS = {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}


def mutate(data: bytes, rng: np.random.Generator, head: int = 200) -> bytes:
    """One to four changes: flipped bits, odd numbers, cuts, repeats, noise.

    Args:
        data: what to change.
        rng: chooses.
        head: half of the changes are in so many bytes at the start, where sizes tend to be.
    """
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if not out:
            break
        span = min(head, len(out)) if rng.random() < 0.5 else len(out)
        at = int(rng.integers(span))
        _CHANGES[int(rng.integers(len(_CHANGES)))](out, at, rng)
    return bytes(out)


def _flip(out: bytearray, at: int, rng: np.random.Generator) -> None:
    out[at] ^= 1 << int(rng.integers(8))


def _number(out: bytearray, at: int, rng: np.random.Generator) -> None:
    width = int(rng.choice(list(_WIDTHS)))
    value = int(rng.choice(_INTERESTING)) % (1 << 8 * width)
    aligned = at - at % width
    out[aligned : aligned + width] = struct.pack(_WIDTHS[width], value)


def _cut(out: bytearray, at: int, rng: np.random.Generator) -> None:
    del out[at:]


def _remove(out: bytearray, at: int, rng: np.random.Generator) -> None:
    del out[at : at + int(rng.integers(1, 16))]


def _repeat(out: bytearray, at: int, rng: np.random.Generator) -> None:
    out[at:at] = out[at : at + int(rng.integers(1, 64))]


def _noise(out: bytearray, at: int, rng: np.random.Generator) -> None:
    count = int(rng.integers(1, 32))
    out[at : at + count] = rng.integers(0, 256, count, np.uint8).tobytes()


def _fill(out: bytearray, at: int, rng: np.random.Generator) -> None:
    count = int(rng.integers(1, 32))
    out[at : at + count] = bytes([int(rng.choice([0, 0x7F, 0x80, 0xFF]))]) * count


_CHANGES = (_flip, _flip, _number, _number, _cut, _remove, _repeat, _noise, _fill)


_ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2, 255, 2**31, 2**63, 10**30, 0.5, math.nan, math.inf, "", "x", "é\n",
    "../../escape", "/etc/passwd", "~", "x" * 3000, [], [None], [[[]]], {}, {"a": 1}, [1, 2, 3],
)  # fmt: skip


def replace_somewhere(text: str, rng: np.random.Generator, *, as_json: bool) -> str:
    """A document with one value replaced by an odd one, one key renamed, or one left out."""
    content = json.loads(text) if as_json else yaml.safe_load(text)
    places: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        keys = node if isinstance(node, dict) else range(len(node))
        for key in keys:
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                collect(node[key])

    collect(content)
    node, key = places[int(rng.integers(len(places)))]
    kind = rng.random()
    if kind < 0.7:
        node[key] = _ODD_VALUES[int(rng.integers(len(_ODD_VALUES)))]
    elif kind < 0.85 or not isinstance(node, dict):
        del node[key]
    else:
        node[f"{key}_"] = node.pop(key)
    return json.dumps(content) if as_json else yaml.safe_dump(content)
