"""Registered depth images: which one belongs to a camera image, and its metres per pixel."""

from __future__ import annotations

import math
import struct
import threading
from collections import deque
from typing import Any

import numpy as np

from anomaly_detector_ros.errors import UserError

_FORMATS = {"16UC1": ("u2", 1e-3), "mono16": ("u2", 1e-3), "32FC1": ("f4", 1.0)}
_SEC_NANOSEC = {0: ">iI", 1: "<iI"}
_HISTORY = 8


def depth_metres(msg: Any, size: tuple[int, int], unit: float = 0.0) -> np.ndarray:
    """Depth along the optical axis: float32 (H, W) in metres, NaN where there is no measurement.

    A depth image of another size than the camera image is refused rather than resized: its pixels
    then need not look where the image's do, and nothing in the message tells.

    Args:
        msg: a `sensor_msgs/Image`, 16UC1 (or mono16) or 32FC1; only its fields are read. 0,
            negative, NaN and infinite values are no measurement.
        size: height and width of the camera image.
        unit: metres that 1 stands for; 0: 16UC1 is in millimetres and 32FC1 in metres (REP 118).

    Raises:
        UserError: another encoding or size, or truncated data.
    """
    if msg.encoding not in _FORMATS:
        raise UserError(
            f"depth image has the encoding {str(msg.encoding)[:40]!r}: publish 16UC1 (millimetres) "
            "or 32FC1 (metres)"
        )
    dtype, usual = _FORMATS[msg.encoding]
    height, width, step = int(msg.height), int(msg.width), int(msg.step)
    if (height, width) != size:
        raise UserError(
            f"depth image is {width}x{height}, the camera image {size[1]}x{size[0]}: register the "
            "depth to the camera image (depth_image_proc's register node)"
        )
    raw = _rows(msg.data, height, step, width * int(dtype[1]))
    stored = raw.view(f"{'>' if msg.is_bigendian else '<'}{dtype}")
    with np.errstate(invalid="ignore", over="ignore"):
        metres = stored.astype(np.float32) * np.float32(unit or usual)
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


def serialised_stamp(data: bytes) -> int | None:
    """The header's stamp of a serialised message that begins with a header, in nanoseconds.

    CDR: four bytes of which the second tells the byte order, then the message's first field. So
    depth images that no camera image asks for are never deserialised. None: not such a message.
    """
    if len(data) < 12 or data[1] not in _SEC_NANOSEC:
        return None
    sec: int
    nanosec: int
    sec, nanosec = struct.unpack_from(_SEC_NANOSEC[data[1]], data, 4)
    return sec * 1_000_000_000 + nanosec


class DepthBuffer:
    """Keeps the newest depth messages, and the best match for the image in work.

    Detection takes longer than the short history lasts, and a depth image may come after its camera
    image: so `watch` is called when an image's turn comes and `matched` when it is done.

    Args:
        tolerance: largest difference of stamps, seconds.
    """

    def __init__(self, tolerance: float) -> None:
        self._tolerance = round(tolerance * 1e9)
        self._recent: deque[tuple[int, bytes]] = deque(maxlen=_HISTORY)
        self._watched: int | None = None
        self._best: tuple[int, bytes] | None = None
        self._lock = threading.Lock()

    def put(self, data: bytes) -> None:
        """Takes a serialised `sensor_msgs/Image`; one without a readable stamp is ignored."""
        stamp = serialised_stamp(data)
        if stamp is None:
            return
        with self._lock:
            self._recent.append((stamp, data))
            self._consider(stamp, data)

    def watch(self, stamp: int) -> None:
        """From now on keeps the depth message closest to a camera image's stamp, nanoseconds."""
        with self._lock:
            self._watched, self._best = stamp, None
            for item in self._recent:
                self._consider(*item)

    def matched(self) -> bytes | None:
        """The serialised depth message for the watched stamp; None if there was none close by."""
        with self._lock:
            best, self._best, self._watched = self._best, None, None
            return None if best is None else best[1]

    def clear(self) -> None:
        """Forgets all messages."""
        with self._lock:
            self._recent.clear()
            self._best = self._watched = None

    def _consider(self, stamp: int, data: bytes) -> None:
        if self._watched is None:
            return
        off = abs(stamp - self._watched)
        if off <= self._tolerance and (
            self._best is None or off < abs(self._best[0] - self._watched)
        ):
            self._best = (stamp, data)
