"""What ~/calibrate does, and whether the cameras still see the nominal scene."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from anomaly_detector_ros.calibration.drift import ALARM, DriftMonitor
from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.ros.parameters import Parameters, camera_parameter

if TYPE_CHECKING:
    from rclpy.impl.rcutils_logger import RcutilsLogger

    from anomaly_detector_ros.calibration.calibration import Calibration
    from anomaly_detector_ros.calibration.live import LiveCalibration
    from anomaly_detector_ros.detection import Detection
    from anomaly_detector_ros.ros.detectors import Detectors

DRIFTED = (
    "scene is no longer the nominal one: look at camera and light; where it is nominal, "
    "call ~/teach"
)
WATCH_INTERVAL = 1.0
"""Seconds between the frames of a camera that are watched: neighbours in time say the same."""


class CalibrationService:
    """Calibrates the running detectors and watches their scores.

    `begin` returns at once: callbacks don't wait for models. What becomes of it is logged, and
    `report` tells of it on the diagnostics.

    Args:
        cameras: their names.
        parameters: the node's, in force at any time.
        node: the node's fully qualified name, of which the file's name is made by default.
        threshold: the threshold in force for a camera.
        done: called when another calibration is in force.
        logger: the node's.
    """

    def __init__(
        self,
        cameras: Sequence[str],
        parameters: Parameters,
        node: str,
        *,
        threshold: Callable[[str], float],
        done: Callable[[], None],
        logger: RcutilsLogger,
    ) -> None:
        self._cameras, self._parameters, self._node = list(cameras), parameters, node
        self._threshold, self._done, self._logger = threshold, done, logger
        self._lock = threading.Lock()
        self._live: LiveCalibration | None = None
        self._file = Path()
        self._problem = ""
        self._watched: Calibration | None = None
        self._monitors: dict[str, DriftMonitor] = {}
        self._last: dict[str, float] = {}

    def begin(self) -> str:
        """Takes the next frames as nominal. Returns what is going to happen, in one line.

        Raises:
            UserError: it cannot be done now.
        """
        # Imports torch, which the node does without until it is configured.
        from anomaly_detector_ros.calibration.live import (
            LiveCalibration,
            check_writable,
            default_file,
        )

        own = {self._parameters.of_camera(name, "calibration") for name in self._cameras}
        if len(own) > 1:
            raise UserError(
                "the cameras have different calibration files: calibrate them into one, see "
                "anomaly-detector calibrate --camera"
            )
        file = Path(os.path.expanduser(self._parameters["calibration_output"]))
        if file == Path():
            file = default_file(self._node)
        check_writable(file)
        with self._lock:
            if self._live is not None:
                raise UserError(f"already calibrating: {self._live.progress}")
            live = LiveCalibration(self._cameras, self._parameters["calibration_frames"])
            self._live, self._file, self._problem = live, file, ""
        return (
            f"the next {live.count} frames of {', '.join(self._cameras)} are taken as nominal; "
            f"then '{file}' is written and in force (scores alone: the distance stays as it is)"
        )

    def cancel(self) -> None:
        """Forgets the frames collected so far and those watched; the calibration stays."""
        with self._lock:
            if self._live is not None:
                self._problem = f"calibrating was cancelled: {self._live.progress}"
                self._logger.warning(self._problem)
            self._live = None
            self._watched = None

    @property
    def busy(self) -> bool:
        """Whether frames are being collected."""
        return self._live is not None

    def report(self, camera: str) -> tuple[str, dict[str, str]]:
        """For the diagnostics of a camera: a warning, empty if there is none, and details."""
        with self._lock:
            live, problem = self._live, self._problem
            monitor = self._monitors.get(camera) if self._watched is not None else None
            statistic = monitor.statistic if monitor else None
        values: dict[str, str] = {}
        if live is not None:
            values["calibrating"] = live.progress
        elif problem:
            values["last calibration"] = problem
        if monitor is None or statistic is None:
            return "", values
        values["drift (alarm level)"] = f"{statistic:.2f} ({ALARM:g})"
        return (DRIFTED if monitor.drifted else ""), values

    # -- images, in the worker's thread ------------------------------------------------------------

    def frame(self, camera: str, detectors: Detectors, detection: Detection) -> None:
        """Takes a detection of a camera, to calibrate on or to watch. Never raises."""
        try:
            with self._lock:
                live, file = self._live, self._file
                if live is None:
                    self._watch(camera, detectors, detection)
                    return
            if not live.add(camera, detection.scores, detection.level):
                return
            with self._lock:
                if self._live is not live:  # cancelled meanwhile
                    return
                self._live = None
            self._finish(live, camera, detectors, file)
        except Exception as error:
            with self._lock:
                self._live = None
                self._problem = one_line(error)
            self._logger.error(f"not calibrated: {one_line(error)}")

    def _watch(self, camera: str, detectors: Detectors, detection: Detection) -> None:
        detector = detectors.detector(camera)
        calibration = detector.calibration if detector else None
        if calibration is None:
            return
        if calibration is not self._watched:
            self._watched = calibration
            self._monitors.clear()
            self._last.clear()
        nominal = calibration.nominal(camera).levels
        now = time.monotonic()
        if nominal is None or now - self._last.get(camera, float("-inf")) < WATCH_INTERVAL:
            return
        self._last[camera] = now
        monitor = self._monitors.get(camera)
        if monitor is None:
            taught = calibration.lessons.levels if calibration.lessons else None
            monitor = DriftMonitor(nominal, self._parameters["drift_window"], taught)
            self._monitors[camera] = monitor
        monitor.add(detection.level)

    def _finish(self, live: LiveCalibration, camera: str, detectors: Detectors, file: Path) -> None:
        from anomaly_detector_ros.building import fingerprint
        from anomaly_detector_ros.calibration.live import save_calibration
        from anomaly_detector_ros.weights.registry import Registry

        detector = detectors.detector(camera)
        if detector is None:
            raise UserError("the models were released meanwhile: calibrate again")
        before = detector.calibration
        of = before.fingerprint if before else fingerprint(detector.profile, Registry.default())
        calibration = live.calibration(before, of)
        save_calibration(calibration, file)
        # Masks stay as they were when heatmaps were raw distances.
        thresholds = {
            camera_parameter(name, "threshold"): share(calibration, name, self._threshold(name))
            for name in (self._cameras if before is None else ())
        }
        detectors.recalibrate(calibration, file)
        text = f"calibrated on {live.count} frames of {', '.join(live.cameras)}: '{file}'"
        if live.missing:
            text += f"; too few frames came from {', '.join(live.missing)}"
        if thresholds:
            self._parameters.set(thresholds)
            given = ", ".join(f"{name} {value:.9g}" for name, value in thresholds.items())
            text += f"; thresholds are shares of nominal pixels from now on: {given}"
        self._logger.info(text)
        self._done()


def share(calibration: Calibration, camera: str, threshold: float) -> float:
    """A raw score as the heatmap value that a calibration makes of it, below 1.

    Heatmaps are float32 and reach 1 for no score but very high ones, so the share is that float32,
    and where it would be 1, the value next to it.
    """
    scores = np.array([threshold], np.float32)
    (value,) = calibration.heatmap(scores, camera)
    return float(min(value, np.nextafter(np.float32(1), np.float32(0))))
