"""Videos: whatever OpenCV opens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from anomaly_detector_ros.imaging.images import ImageError, say_once

# How containers of videos begin: offset and bytes.
_BEGINNINGS = (
    (4, b"ftyp"), (4, b"moov"), (4, b"mdat"), (4, b"wide"), (4, b"free"), (4, b"skip"),
    (8, b"AVI "), (0, b"\x1aE\xdf\xa3"), (0, b"OggS"), (0, b"FLV\x01"), (0, b"YUV4MPEG2"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"), (0, b"\x00\x00\x01\xba"), (0, b"\x00\x00\x01\xb3"),
    (0, b"\x00\x00\x00\x01\x67"), (0, b"\x00\x00\x00\x01\x40\x01"), (0, b"DKIF"), (0, b"GIF8"),
)  # fmt: skip
_BEGINNING = 1024
_TRANSPORT_PACKETS = (188, 192, 204)  # bytes, each beginning with the same one
_ENOUGH = 0.98


def is_video(file: Path) -> bool:
    """Whether a file begins as a video, whatever its name."""
    with file.open("rb") as stream:
        data = stream.read(_BEGINNING)
    if any(data.startswith(mark, offset) for offset, mark in _BEGINNINGS):
        return True
    return any(
        len(data) > 3 * size and all(data[first + i * size] == 0x47 for i in range(3))
        for size in _TRANSPORT_PACKETS
        for first in (0, 4)
    )


def count_frames(file: Path) -> int:
    """How many frames the header estimates; at least 1."""
    capture = cv2.VideoCapture(str(file.absolute()))
    try:
        return max(1, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    finally:
        capture.release()


def read_video(file: Path) -> Iterator[np.ndarray]:
    """Every frame, upright: uint8 RGB (H, W, 3).

    Where the header estimates clearly more, the log says so: such a file may have been cut.

    Raises:
        ImageError: no frame can be decoded.
    """
    capture = cv2.VideoCapture(str(file.absolute()))
    index = 0
    try:
        expected = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        while True:
            more, frame = capture.read()
            if not more:
                break
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            index += 1
    finally:
        capture.release()
    if index == 0:
        raise ImageError(f"cannot read '{file}': no frame of the video can be decoded")
    if index < _ENOUGH * expected:
        say_once(
            f"video '{file}'", f"its header estimates {expected} frames, {index} could be decoded"
        )
