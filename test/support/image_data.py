"""Camera messages and encoded pictures of given pixels."""

from __future__ import annotations

import array
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np

SMOOTH = np.dstack(np.meshgrid(np.arange(64) * 3, np.arange(48) * 4)).astype(np.uint8)
SMOOTH = np.dstack([SMOOTH, np.full((48, 64), 90, np.uint8)])


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    bgr = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return cv2.imencode(f".{kind}", bgr)[1].tobytes()


def compressed(data: bytes, text: str) -> Any:
    return SimpleNamespace(format=text, data=array.array("B", data))


def message(pixels: np.ndarray, encoding: str, padding: int = 0, big: bool = False) -> Any:
    """An Image message of the pixels, with as many bytes of rubbish behind each row."""
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    if pixels.dtype.itemsize > 1:
        rows = np.ascontiguousarray(rows.astype(pixels.dtype.newbyteorder(">" if big else "<")))
    rows = np.ascontiguousarray(rows).view(np.uint8)
    data = np.hstack([rows, np.full((height, padding), 0xAB, np.uint8)])
    return SimpleNamespace(
        height=height, width=width, encoding=encoding, is_bigendian=int(big),
        step=data.shape[1], data=data.tobytes(),
    )  # fmt: skip


def grey_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)
