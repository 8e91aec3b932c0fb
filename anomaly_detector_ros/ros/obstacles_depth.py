"""The depth image that belongs to a camera image, by stamp."""

from __future__ import annotations

import struct
import threading
from collections import deque

_SEC_NANOSEC = {0: ">iI", 1: "<iI"}
_HISTORY = 8


def serialised_stamp(data: bytes) -> int | None:
    """The header's stamp of a serialised message that begins with a header, in nanoseconds.

    CDR: four bytes of which the second tells the byte order, then the message's first field. So
    depth images that no camera image asks for are never deserialised. None: not such a message.
    """
    if len(data) < 12 or data[1] not in _SEC_NANOSEC:
        return None
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
