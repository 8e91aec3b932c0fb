"""Registered depth images: metres per pixel of the camera image."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from anomaly_detector_ros.errors import UserError

_FORMATS = {"16UC1": ("u2", 1e-3), "mono16": ("u2", 1e-3), "32FC1": ("f4", 1.0)}


def depth_metres(msg: Any, size: tuple[int, int]) -> np.ndarray:
    """Depth along the optical axis: float32 (H, W) in metres, NaN where there is no measurement.

    A depth image of another size than the camera image is refused rather than resized: its pixels
    then need not look where the image's do, and nothing in the message tells.

    Args:
        msg: a `sensor_msgs/Image`, 16UC1 (or mono16) in millimetres or 32FC1 in metres; only its
            fields are read. 0, negative, NaN and infinite values are no measurement.
        size: height and width of the camera image.

    Raises:
        UserError: another encoding or size, or truncated data.
    """
    if msg.encoding not in _FORMATS:
        raise UserError(
            f"depth image has the encoding {str(msg.encoding)[:40]!r}: publish 16UC1 (millimetres) "
            "or 32FC1 (metres)"
        )
    dtype, unit = _FORMATS[msg.encoding]
    height, width, step = int(msg.height), int(msg.width), int(msg.step)
    if (height, width) != size:
        raise UserError(
            f"depth image is {width}x{height}, the camera image {size[1]}x{size[0]}: register the "
            "depth to the camera image (depth_image_proc's register node)"
        )
    raw = _rows(msg.data, height, step, width * int(dtype[1]))
    stored = raw.view(f"{'>' if msg.is_bigendian else '<'}{dtype}")
    with np.errstate(invalid="ignore", over="ignore"):
        metres = stored.astype(np.float32) * np.float32(unit)
        metres[~((metres > 0.0) & (metres < math.inf))] = np.nan
    return metres


def _rows(data: Any, height: int, step: int, row: int) -> np.ndarray:
    """The image's rows without padding, uint8 (height, row)."""
    octets = np.frombuffer(data, np.uint8)
    if step < row or octets.size < (height - 1) * step + row:
        raise UserError(
            f"depth image holds {octets.size} bytes with a step of {step} for {height} rows of "
            f"{row}: check the depth driver"
        )
    padded = np.lib.stride_tricks.as_strided(octets, (height, row), (step, 1), writeable=False)
    return np.ascontiguousarray(padded)
