"""What exists while the node is configured: models, cameras, and the thread that serves them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from anomaly_detector_ros.errors import one_line
from anomaly_detector_ros.ros.camera import Camera, Picture, Settings
from anomaly_detector_ros.ros.costmap_output import CostmapOutput
from anomaly_detector_ros.ros.counters import Dropped
from anomaly_detector_ros.ros.detection_parameters import PROFILE_THRESHOLD
from anomaly_detector_ros.ros.extrinsics import make_transforms
from anomaly_detector_ros.ros.parameters import models_path
from anomaly_detector_ros.ros.watchdog import Watchdog
from anomaly_detector_ros.ros.worker import Frame, Turn, Worker

if TYPE_CHECKING:
    from anomaly_detector_ros.detection import Detection
    from anomaly_detector_ros.detector import Detector
    from anomaly_detector_ros.ros.models import Models
    from anomaly_detector_ros.ros.node import AnomalyDetectorNode

LOADING_TIMEOUT = 600.0
"""Seconds that the worker's thread may take to load models; see `Watchdog`."""


class Session:
    """Loads the models, creates the cameras and starts the thread that serves them.

    Args:
        node: its parameters are in force; it owns publishers and subscriptions.

    Raises:
        UserError: the models cannot be had.
    """

    def __init__(self, node: AnomalyDetectorNode) -> None:
        self._node, self._parameters = node, node.parameters
        names = self._parameters["cameras"]
        self.cameras: list[Camera] = []
        self._transforms = make_transforms(node)
        self._costmap: CostmapOutput | None = None
        try:
            self._costmap = CostmapOutput(node, self._transforms)
            for name in names:
                transport = self._parameters.of_camera(name, "image_transport")
                camera = Camera(node, name, transport, self._transforms, self._costmap)
                self.cameras.append(camera)
            self._worker = Worker(
                [camera.counters for camera in self.cameras],
                self._serve,
                min_interval=self._min_interval,
                batch=lambda: self._parameters["batch_cameras"],
                report=self._report,
            )
            self._models = self._load(names)
        except Exception:
            self._close_cameras()
            raise
        self.watchdog = Watchdog(self._worker, self._renew)
        self._worker.start()

    def _load(self, cameras: list[str]) -> Models:
        # Imports torch, which takes seconds: not before somebody wants the models.
        from anomaly_detector_ros.ros.models import Models, Wanted

        wanted = Wanted(
            self._parameters["profile"],
            self._parameters["device"],
            models_path(self._parameters["models_dir"]),
            self._parameters["offline"],
            {name: self._parameters.of_camera(name, "calibration") for name in cameras},
        )
        models = Models(wanted, self._worker.beat)
        models.load()
        return models

    def _renew(self) -> None:
        self._models = self._models.fresh()

    # -- life --------------------------------------------------------------------------------------

    def listen(self) -> None:
        """Begins to listen to the cameras."""
        try:
            for index, camera in enumerate(self.cameras):

                def put(frame: Frame, index: int = index) -> None:
                    self._worker.put(index, frame)

                camera.subscribe(put)
        except Exception:  # an impossible qos_overrides value, for one
            self.unlisten()
            raise

    def unlisten(self) -> None:
        """Stops listening."""
        self._node.calibrating.cancel()
        for camera in self.cameras:
            camera.unsubscribe()
        self.discard()

    def discard(self) -> None:
        """Drops the images that wait."""
        self._worker.discard()

    def reset(self) -> None:
        """Forgets what was seen, as when the clock jumps."""
        for camera in self.cameras:
            camera.reset()
        if self._costmap is not None:
            self._costmap.reset()

    def close(self, timeout: float | None) -> bool:
        """Ends everything after the image in work; False if that took longer than ``timeout``."""
        self.unlisten()
        stopped = self._worker.stop(timeout)
        self._close_cameras()
        return stopped

    def _close_cameras(self) -> None:
        for camera in self.cameras:
            camera.close()
        if self._costmap is not None:
            self._costmap.close()
        self._transforms.close()

    # -- in force ----------------------------------------------------------------------------------

    @property
    def detector(self) -> Detector | None:
        """A detector of the cameras; None while models are loaded in place of others."""
        return self._models.any

    @property
    def degraded(self) -> str:
        """What the models do without because memory ran out; empty if nothing."""
        return self._models.problem

    def threshold(self, camera: str) -> float:
        """The threshold in force for a camera: its own, the node's or the profile's."""
        value = self._parameters.of_camera(camera, "threshold")
        detector = self._models.detector(camera)
        return detector.threshold if value == PROFILE_THRESHOLD and detector else value

    def supervise(self) -> str:
        """Looks after the worker's thread; to be called every second. See `Watchdog.check`."""
        timeout = self._parameters["watchdog_timeout"]
        if timeout and self._models.loading:
            timeout = max(timeout, LOADING_TIMEOUT)
        return self.watchdog.check(timeout)

    # -- images, in the worker's thread ------------------------------------------------------------

    def _serve(self, turns: list[Turn]) -> None:
        models = self._models
        pictures: dict[Turn, Picture] = {}
        for turn in turns:
            camera = self.cameras[turn.index]
            if not self._node.enabled:
                turn.settle(Dropped("paused"))
                continue
            picture = camera.decode(turn, self._parameters["max_input_age"])
            if picture is None:
                continue
            similar = camera.skipper.recall(picture.pixels, self._parameters["skip_similar"])
            if similar is None:
                pictures[turn] = picture
            else:
                self._finish(turn, picture, similar)
        groups: dict[str, dict[Turn, Picture]] = {}
        for turn, picture in pictures.items():
            calibration = models.calibration(self.cameras[turn.index].name)
            groups.setdefault(calibration, {})[turn] = picture
        for group in groups.values():
            self._detect(models, group)

    def _detect(self, models: Models, pictures: dict[Turn, Picture]) -> None:
        """Takes images of cameras with the same calibration through the models in one batch."""
        names = [self.cameras[turn.index].name for turn in pictures]
        level = models.level
        found = models.detect(names, [picture.pixels for picture in pictures.values()])
        if models.level != level:
            doing = models.problem or "memory suffices again: the models are as the profile says"
            self._node.get_logger().warning(f"models changed: {doing}")
        done: list[tuple[str, Detection]] = []
        for (turn, picture), detection in zip(pictures.items(), found, strict=True):
            camera = self.cameras[turn.index]
            if isinstance(detection, Exception):
                problem = f"detection failed: {type(detection).__name__}: {detection}"
                camera.drop(turn, "failed", problem)
            elif self._finish(turn, picture, detection):
                camera.skipper.remember(picture.pixels, replace(detection, timings={}))
                done.append((camera.name, detection))
        # At the end, as this may change what heatmap values mean; and only here, as an image that
        # takes over what was found in another one is no further nominal frame.
        for name, detection in done:
            self._node.calibrating.frame(name, models, detection)

    def _finish(self, turn: Turn, picture: Picture, detection: Detection) -> bool:
        """Publishes what was found; False if that failed or the turn's thread was given up."""
        camera = self.cameras[turn.index]
        settings = Settings(
            self.threshold(camera.name),
            self._parameters["jpeg_quality"],
            self._parameters["temporal_filter"],
        )
        try:
            return camera.finish(turn, picture, detection, settings)
        except Exception as error:  # the batch's other images go on
            turn.settle(Dropped("failed", one_line(f"{type(error).__name__}: {error}")))
            self._report(turn.index, error)
            return False

    def _report(self, index: int, error: Exception) -> None:
        # While the node shuts down, publishing fails by itself.
        if not self._worker.stopping and self._node.context.ok():
            self.cameras[index].report(error)

    def _min_interval(self, index: int) -> float:
        rate = self._parameters.of_camera(self.cameras[index].name, "max_rate")
        return 1.0 / rate if rate else 0.0
