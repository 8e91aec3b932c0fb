"""Calibrating a running detector on the frames that it is given anyway."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from anomaly_detector_ros.calibration.calibration import (
    DEFAULT_CAMERA,
    Calibration,
    NominalScores,
)
from anomaly_detector_ros.calibration.distribution import ScorePool
from anomaly_detector_ros.errors import UserError, one_line

# A camera that has not enough frames when another had so many times as many as it needs is given
# up: it has stopped.
_PATIENCE = 3


class LiveCalibration:
    """Collects the raw scores of the next frames of some cameras, all of them taken as nominal.

    What it changes is how scores become heatmap values. A fitted distance stays what it was
    fitted to be: that takes two passes over the images, as `fit_calibration` does.

    Args:
        cameras: their names.
        count: frames to collect of each.
    """

    def __init__(self, cameras: Sequence[str], count: int) -> None:
        self.count = count
        self._pools = {camera: ScorePool() for camera in cameras}
        self._seen = dict.fromkeys(cameras, 0)

    def add(self, camera: str, scores: np.ndarray, level: float) -> bool:
        """Takes a frame; True once there are enough.

        Args:
            camera: that saw it.
            scores: before calibration, (H, W).
            level: `Detection.level`.

        Raises:
            ValueError: scores that are not finite.
        """
        pool = self._pools[camera]
        if len(pool) < self.count:
            pool.add(scores, level)
        self._seen[camera] += 1
        given_up = max(self._seen.values()) >= _PATIENCE * self.count
        return given_up or all(len(pool) == self.count for pool in self._pools.values())

    @property
    def progress(self) -> str:
        """How far it is, for people."""
        return ", ".join(f"{name} {len(pool)}" for name, pool in self._pools.items()) + (
            f" of {self.count} frames"
        )

    @property
    def cameras(self) -> list[str]:
        """The cameras that have enough frames."""
        return [name for name, pool in self._pools.items() if len(pool) == self.count]

    @property
    def missing(self) -> list[str]:
        """The cameras that don't."""
        return [name for name in self._pools if name not in self.cameras]

    def calibration(
        self, present: Calibration | None, fingerprint: Mapping[str, Any]
    ) -> Calibration:
        """The present calibration with the scores of `cameras` in it.

        Args:
            present: None for a detector without one; other cameras then get the scores of these.
            fingerprint: what it is fitted for; a present one keeps its own.

        Raises:
            UserError: scores that are all alike.
        """
        own = {camera: NominalScores.of(self._pools[camera]) for camera in self.cameras}
        if present is not None:
            # Its file may lie in another folder.
            return replace(present, cameras={**present.cameras, **own}, shared="")
        together = NominalScores.of(ScorePool(self._pools[camera] for camera in self.cameras))
        return Calibration(
            cameras={DEFAULT_CAMERA: together, **own},
            fingerprint=fingerprint,
        )


def save_calibration(calibration: Calibration, file: Path) -> None:
    """Writes the file, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    try:
        calibration.save(file)
    except OSError as error:
        raise _cannot_write(file, error) from error


def check_writable(file: Path) -> None:
    """Makes the file's folder and tries whether a file can be written there.

    Raises:
        UserError: it cannot.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise _cannot_write(file, error) from error


def default_file(node: str) -> Path:
    """Where a node's calibration is written if nobody says: in ROS's own folder of the user.

    Args:
        node: its fully qualified name, such as ``/robot1/anomaly_detector``.
    """
    home = os.environ.get("ROS_HOME") or os.path.expanduser("~/.ros")
    return Path(home) / f"{node.strip('/').replace('/', '_')}_calibration.safetensors"


def _cannot_write(file: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot write the calibration '{file}' ({one_line(error)}): make room or set "
        "calibration_output to another file"
    )
