"""The node's service ~/calibrate, and whether its cameras still see the nominal scene."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rclpy.parameter import Parameter
from std_srvs.srv import Trigger

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.ros.parameter_table import camera_parameter

if TYPE_CHECKING:
    from anomaly_detector_ros.calibration.calibration import Calibration
    from anomaly_detector_ros.calibration.drift import DriftMonitor
    from anomaly_detector_ros.calibration.live import LiveCalibration
    from anomaly_detector_ros.detection import Detection
    from anomaly_detector_ros.ros.models import Models
    from anomaly_detector_ros.ros.node import AnomalyDetectorNode

DRIFTED = "scene is no longer the nominal one"
WATCH_INTERVAL = 1.0
"""Seconds between the frames of a camera that are watched: neighbours in time say the same."""


class Calibrating:
    """Calibrates the running detector and watches its scores.

    The service answers at once: callbacks don't wait for models. What becomes of it is logged, and
    `report` tells of it on the diagnostics.

    Args:
        node: whose detector and parameters these are.
        group: callback group of the service.
    """

    def __init__(self, node: AnomalyDetectorNode, group: Any) -> None:
        self._node = node
        self._lock = threading.Lock()
        self._live: LiveCalibration | None = None
        self._file = Path()
        self._problem = ""
        self._watched: Calibration | None = None
        self._monitors: dict[str, DriftMonitor] = {}
        self._last: dict[str, float] = {}
        node.create_service(Trigger, "~/calibrate", self._on_calibrate, callback_group=group)

    # -- callbacks ---------------------------------------------------------------------------------

    def _on_calibrate(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        try:
            response.message = self._begin()
            response.success = True
        except Exception as error:  # without an answer the caller would wait for ever
            response.message = one_line(error)
            response.success = False
        return response

    def _begin(self) -> str:
        # Imports torch, which the node does without until it is configured.
        from anomaly_detector_ros.calibration.live import (
            LiveCalibration,
            check_writable,
            default_file,
        )

        node, session = self._node, self._node.session
        if session is None or node.state != "active" or not node.enabled:
            raise UserError("no frames to calibrate on: activate the node and enable it first")
        if session.degraded:
            raise UserError(f"the models are not as the profile says ({session.degraded}): later")
        names = [camera.name for camera in session.cameras]
        if len({node.parameters.of_camera(name, "calibration") for name in names}) > 1:
            raise UserError(
                "the cameras have different calibration files: calibrate them into one, see "
                "anomaly-detector calibrate --camera"
            )
        file = Path(os.path.expanduser(node.parameters["calibration_output"]))
        if file == Path():
            file = default_file(node.get_fully_qualified_name())
        check_writable(file)
        with self._lock:
            if self._live is not None:
                raise UserError(f"already calibrating: {self._live.progress}")
            live = self._live = LiveCalibration(names, node.parameters["calibration_frames"])
            self._file, self._problem = file, ""
        return (
            f"the next {live.count} frames of {', '.join(names)} are taken as nominal; then "
            f"'{file}' is written and in force (scores alone: the distance stays as it is)"
        )

    def cancel(self) -> None:
        """Forgets the frames collected so far and those watched; the calibration stays."""
        with self._lock:
            if self._live is not None:
                self._problem = f"calibrating was cancelled: {self._live.progress}"
                self._node.get_logger().warning(self._problem)
            self._live = None
            self._watched = None

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
        level = monitor.nominal.level
        values["drift (alarm level)"] = f"{statistic:.2f} ({level:.2f})"
        return (DRIFTED if statistic > level else ""), values

    # -- images, in the worker's thread ------------------------------------------------------------

    def frame(self, camera: str, models: Models, detection: Detection) -> None:
        """Takes a detection of a camera, to calibrate on or to watch. Never raises."""
        try:
            with self._lock:
                live, file = self._live, self._file
                if live is None:
                    self._watch(camera, models, detection)
                    return
            if not live.add(camera, detection.scores):
                return
            with self._lock:
                if self._live is not live:  # cancelled meanwhile
                    return
                self._live = None
            self._finish(live, camera, models, file)
        except Exception as error:
            with self._lock:
                self._live = None
                self._problem = one_line(error)
            self._node.get_logger().error(f"not calibrated: {one_line(error)}")

    def _watch(self, camera: str, models: Models, detection: Detection) -> None:
        from anomaly_detector_ros.calibration.drift import DriftMonitor

        detector = models.detector(camera)
        calibration = detector.calibration if detector else None
        if calibration is None:
            return
        if calibration is not self._watched:
            self._watched = calibration
            self._monitors.clear()
            self._last.clear()
        nominal = calibration.nominal(camera).frames
        now = time.monotonic()
        if nominal is None or now - self._last.get(camera, float("-inf")) < WATCH_INTERVAL:
            return
        self._last[camera] = now
        monitor = self._monitors.get(camera)
        if monitor is None:
            monitor = DriftMonitor(nominal, self._node.parameters["drift_window"])
            self._monitors[camera] = monitor
        monitor.add(detection.heatmap)

    def _finish(self, live: LiveCalibration, camera: str, models: Models, file: Path) -> None:
        from anomaly_detector_ros.building import fingerprint
        from anomaly_detector_ros.calibration.live import save_calibration
        from anomaly_detector_ros.weights.registry import Registry

        detector = models.detector(camera)
        if detector is None:
            raise UserError("the models were released meanwhile: calibrate again")
        before = detector.calibration
        of = before.fingerprint if before else fingerprint(detector.profile, Registry.default())
        calibration = live.calibration(before, of)
        save_calibration(calibration, file)
        thresholds = self._shares(calibration) if before is None else {}
        models.recalibrate(calibration, file)
        text = f"calibrated on {live.count} frames of {', '.join(live.cameras)}: '{file}'"
        if live.missing:
            text += f"; too few frames came from {', '.join(live.missing)}"
        if thresholds:
            # Masks stay as they were when heatmaps were raw distances.
            self._node.set_parameters([Parameter(n, value=v) for n, v in thresholds.items()])
            given = ", ".join(f"{name} {value:g}" for name, value in thresholds.items())
            text += f"; thresholds are shares of nominal pixels from now on: {given}"
        self._node.get_logger().info(text)
        session = self._node.session
        for each in session.cameras if session else ():
            each.reset()  # heatmaps seen so far are on another scale

    def _shares(self, calibration: Calibration) -> dict[str, float]:
        """The thresholds in force, as shares of nominal pixels, by the parameter's name."""
        session = self._node.session
        return {
            camera_parameter(camera.name, "threshold"): round(
                float(
                    calibration.nominal(camera.name).distribution(session.threshold(camera.name))
                ),
                4,
            )
            for camera in (session.cameras if session else ())
        }
