"""The camera that the demo's scenes were drawn with, which makes distances of its pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FILE = "camera.json"
BASE, OPTICAL = "base_link", "camera_optical_frame"
"""Frames of the robot, on the ground below the camera, and of the pictures."""


@dataclass(frozen=True)
class SceneCamera:
    """A level pinhole camera above flat ground.

    Attributes:
        focal: focal length in pixels.
        height: above the ground in metres.
        horizon: row of the horizon, by the name of the picture.
    """

    focal: float
    height: float
    horizon: Mapping[str, float]

    @classmethod
    def load(cls, file: Path) -> SceneCamera:
        """The camera in a JSON file that has the attributes' names."""
        return cls(**json.loads(file.read_text()))

    def matrix(self, name: str, width: int) -> list[float]:
        """`CameraInfo.k` of a picture, so many pixels wide; empty where it is not known.

        A level camera sees the horizon in the row of its centre.
        """
        if name not in self.horizon:
            return []
        return [self.focal, 0.0, width / 2, 0.0, self.focal, self.horizon[name], 0.0, 0.0, 1.0]
