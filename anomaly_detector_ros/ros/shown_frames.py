"""The frames that were shown lately, so that somebody can point at what is in them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from geometry_msgs.msg import PointStamped

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.mapping.poses import Transforms
from anomaly_detector_ros.ros.camera import Camera, Picture, nanoseconds
from anomaly_detector_ros.ros.parameters import Parameters

if TYPE_CHECKING:
    from anomaly_detector_ros.detection import Detection
    from anomaly_detector_ros.lessons.teaching import Look

RECENT = 12
"""Frames of a camera that can be pointed at ..."""
APART = 0.4
"""... and seconds that lie between them at least."""
# A point of a cloud stands for its surroundings.
_NEAR = 8


@dataclass(frozen=True)
class Shown:
    """A frame that was published, as far as a click needs it.

    Attributes:
        seen: when, monotonic seconds.
        picture: its header and where it was taken, with the pixels made small.
        segments: int32 (H, W).
        mask: bool (H, W).
        look: what lessons are made of.
    """

    seen: float
    picture: Picture
    segments: np.ndarray
    mask: np.ndarray
    look: Look

    @property
    def stamp(self) -> int:
        """Of its message, nanoseconds."""
        return self.picture.stamp


class ShownFrames:
    """The last frames of each camera; see `RECENT` and `APART`.

    Args:
        cameras: by name.
        parameters: the node's, in force at any time.
        transforms: where TF is looked up.
    """

    def __init__(
        self, cameras: Mapping[str, Camera], parameters: Parameters, transforms: Transforms
    ) -> None:
        self._cameras = dict(cameras)
        self._parameters, self._transforms = parameters, transforms
        self._recent: dict[str, deque[Shown]] = {name: deque(maxlen=RECENT) for name in cameras}

    def add(
        self, camera: str, now: float, picture: Picture, detection: Detection, look: Look
    ) -> None:
        """Remembers a frame."""
        height, width = picture.pixels.shape[:2]
        size = (160, max(1, round(height * 160 / width)))
        small = cv2.resize(picture.pixels, size, interpolation=cv2.INTER_AREA)
        recent = self._recent[camera]
        # The newest is always there, whatever lies before it.
        if len(recent) > 1 and recent[-1].seen - recent[-2].seen < APART:
            recent.pop()
        kept = picture._replace(pixels=small)
        recent.append(Shown(now, kept, detection.segments, detection.mask, look))

    def clear(self) -> None:
        """Forgets all frames."""
        for recent in self._recent.values():
            recent.clear()

    def at_pixel(self, camera: str, message: PointStamped) -> tuple[Shown, int, int]:
        """The frame, row and column of a point in pixels: x to the right, y down.

        It means the frame that was shown at the message's stamp; with stamp 0 the last one.

        Raises:
            UserError: there is no such frame, or the point is not finite.
        """
        x, y = _finite(message.point.x), _finite(message.point.y)
        stamp = nanoseconds(message.header)
        recent = list(self._recent[camera])
        if not recent:
            raise UserError(f"no frame of {camera} was shown yet")
        found = [each for each in recent if each.stamp <= stamp] if stamp else recent
        if not found:
            ago = (recent[-1].stamp - stamp) * 1e-9
            raise UserError(
                f"the frame is gone, it was shown {ago:.1f} s before the last one: click on one of "
                f"the last {RECENT}"
            )
        return found[-1], int(np.floor(y)), int(np.floor(x))

    def in_space(self, message: PointStamped, arrived: int) -> tuple[str, Shown, int, int]:
        """The camera, frame, row and column that show a point: best where there is an alarm.

        Args:
            message: its frame may move, as the robot's does: the point lay there when it was sent.
            arrived: nanoseconds by the node's clock; that of who sent it may be another.

        Raises:
            UserError: no frame shows it, or the point is not finite.
        """
        point = np.array([_finite(getattr(message.point, axis)) for axis in "xyz"])
        frame, moments = message.header.frame_id, (nanoseconds(message.header), arrived)
        places = [*self._standing_still(point, frame, moments), (point, frame)]
        seen: list[tuple[str, Shown, int, int]] = []
        problem = "no camera sees it"
        for name, camera in self._cameras.items():
            for shown in reversed(self._recent[name]):
                try:
                    place = _locate(camera, shown, places)
                except UserError as error:
                    problem = one_line(error)
                    break
                if place is None:
                    continue
                if (alarm := _nearest_alarm(shown.mask, *place)) is not None:
                    return name, shown, *alarm
                seen.append((name, shown, *place))
        if not seen:
            raise UserError(f"the point is in no frame that was shown lately: {problem}")
        return seen[0]

    def _standing_still(
        self, point: np.ndarray, frame: str, moments: Sequence[int]
    ) -> list[tuple[np.ndarray, str]]:
        """The point of a moment in the frame of the costmap; nothing where TF does not know it."""
        fixed = self._parameters["costmap.frame"]
        try:
            pose = self._transforms.lookup(fixed, frame, moments)
        except UserError:
            return []
        return [((pose @ np.append(point, 1.0))[:3], fixed)]


def _locate(
    camera: Camera, shown: Shown, places: Sequence[tuple[np.ndarray, str]]
) -> tuple[int, int] | None:
    """The pixel of a frame, row and column, at the first of the places that TF knows.

    Raises:
        UserError: it knows none.
    """
    *others, last = places
    for point, frame in others:
        try:
            return camera.locate(point, frame, shown.mask.shape, shown.picture.taken)
        except UserError:
            continue
    return camera.locate(*last, shown.mask.shape, shown.picture.taken)


def _nearest_alarm(mask: np.ndarray, row: int, column: int) -> tuple[int, int] | None:
    """The nearest pixel of a mask, bool (H, W), among those around one."""
    top, left = max(row - _NEAR, 0), max(column - _NEAR, 0)
    near = np.argwhere(mask[top : row + _NEAR + 1, left : column + _NEAR + 1])
    if not len(near):
        return None
    nearest = near[np.abs(near - np.array([row - top, column - left])).sum(1).argmin()]
    return int(top + nearest[0]), int(left + nearest[1])


def _finite(value: float) -> float:
    if not np.isfinite(value):
        raise UserError("the point is not finite")
    return float(value)
