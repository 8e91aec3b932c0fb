"""Pictures in motion, as GIF or MP4."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image as PilImage

from anomaly_detector_ros.errors import UserError

Kind = Literal["gif", "mp4"]

_RATE = 12.5
"""Pictures a second."""
_HOLD = 2.0
"""Seconds for which the last one stays."""
_COLOURS = 64
"""Of a GIF: noise does not compress, and looks the same with few."""


def encode_animation(pictures: Sequence[np.ndarray], kind: Kind) -> bytes:
    """The content of a file that plays pictures, uint8 RGB (H, W, 3), all of one size.

    A GIF plays over and over.

    Raises:
        UserError: OpenCV cannot write videos here.
    """
    return _gif(pictures) if kind == "gif" else _mp4(pictures)


def side_by_side(image: np.ndarray, other: np.ndarray) -> np.ndarray:
    """An image, brought to the size of the ``other`` one, to the left of that; uint8 (H, W, 3)."""
    height, width = other.shape[:2]
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return np.concatenate([small, other], 1)


def _gif(pictures: Sequence[np.ndarray]) -> bytes:
    first, *rest = (PilImage.fromarray(each).quantize(_COLOURS) for each in pictures)
    durations = [1000 / _RATE] * len(rest) + [1000 * _HOLD]
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)
    return file.getvalue()


def _mp4(pictures: Sequence[np.ndarray]) -> bytes:
    height, width = pictures[0].shape[:2]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "animation.mp4"  # OpenCV goes by the suffix
        fourcc = cv2.VideoWriter.fourcc(*"mp4v")
        video = cv2.VideoWriter(str(file), fourcc, _RATE, (width, height))
        for picture in [*pictures, *[pictures[-1]] * round(_RATE * _HOLD)]:
            video.write(np.ascontiguousarray(picture[..., ::-1]))
        video.release()
        if not file.is_file() or not file.stat().st_size:
            raise UserError("OpenCV cannot write MP4 videos here: record as gif")
        return file.read_bytes()
