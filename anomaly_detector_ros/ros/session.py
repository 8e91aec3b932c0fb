"""What exists while the node is configured: models, cameras, and the thread that serves them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from geometry_msgs.msg import PointStamped
from nav_msgs.msg import OccupancyGrid
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock
from rclpy.serialization import deserialize_message
from visualization_msgs.msg import ImageMarker, Marker

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.mapping.poses import Transforms
from anomaly_detector_ros.ros import costmap
from anomaly_detector_ros.ros.calibration_service import CalibrationService
from anomaly_detector_ros.ros.camera import Camera, Picture, input_topic, names_rectified
from anomaly_detector_ros.ros.costmap import Costmap
from anomaly_detector_ros.ros.counters import Dropped
from anomaly_detector_ros.ros.diagnostics import (
    OK,
    WARN,
    Intake,
    Status,
    camera_status,
    costmap_status,
    node_status,
)
from anomaly_detector_ros.ros.obstacles import ObstacleOutputs
from anomaly_detector_ros.ros.output import Output
from anomaly_detector_ros.ros.parameters import UNSET, CostmapParameters, Parameters, models_path
from anomaly_detector_ros.ros.qos import EVENTS, LATCHED, Topics
from anomaly_detector_ros.ros.shown_frames import ShownFrames
from anomaly_detector_ros.ros.teaching_service import CLICKED, TeachingService
from anomaly_detector_ros.ros.worker import Frame, Turn, Watchdog, Worker

if TYPE_CHECKING:
    from rclpy.impl.rcutils_logger import RcutilsLogger

    from anomaly_detector_ros.detection import Detection
    from anomaly_detector_ros.ros.detectors import Detectors

LOADING_TIMEOUT = 600.0
"""Seconds that the worker's thread may take to load models; see `Watchdog`."""


class Session:
    """Loads the models, creates the cameras and starts the thread that serves them.

    Args:
        parameters: the node's, in force at any time.
        name: the node's fully qualified name.
        topics: makes the topics of one camera, or of the costmap.
        transforms: where TF is looked up.
        enabled: whether images are worked on, asked at each.
        alive: whether rclpy is not shut down.
        clock: the node's.
        logger: the node's.

    Attributes:
        cameras: in the order of the parameter.
        calibrating: what ~/calibrate asks for.
        teaching: what ~/teach, ~/undo_lesson and clicks ask for.

    Raises:
        UserError: the models cannot be had.
    """

    def __init__(
        self,
        parameters: Parameters,
        name: str,
        *,
        topics: Callable[[], Topics],
        transforms: Transforms,
        enabled: Callable[[], bool],
        alive: Callable[[], bool],
        clock: Clock,
        logger: RcutilsLogger,
    ) -> None:
        self._parameters, self._transforms = parameters, transforms
        self._enabled, self._alive = enabled, alive
        self._clock, self._logger = clock, logger
        self._topics: list[Topics] = []
        self.cameras: list[Camera] = []
        try:
            self._costmap = self._make_costmap(self._own(topics()))
            self._points = self._own(topics())
            self._marker = self._points.advertise(Marker, "~/taken")
            self._outlines: dict[str, Output] = {}
            for camera in parameters["cameras"]:
                self.cameras.append(self._make_camera(camera, self._own(topics())))
            self._worker = Worker(
                [camera.counters for camera in self.cameras],
                self._serve,
                min_interval=self._min_interval,
                batch=lambda: bool(parameters["batch_cameras"]),
                report=self._report,
            )
            self._detectors = self._load()
            by_name = {camera.name: camera for camera in self.cameras}
            self.teaching = TeachingService(
                list(by_name),
                parameters,
                name,
                shown=ShownFrames(by_name, parameters, transforms),
                clock=clock,
                submit=self._worker.submit,
                detectors=lambda: self._detectors,
                threshold=self.threshold,
                changed=self._forget_frames,
                marker=self._marker,
                outlines=self._outlines,
                logger=logger,
            )
        except Exception:
            self._close_topics()
            raise
        self._watchdog = Watchdog(self._worker, self._renew)
        self.calibrating = CalibrationService(
            [camera.name for camera in self.cameras],
            parameters,
            name,
            threshold=self.threshold,
            done=self._forget_frames,  # heatmaps seen so far are on another scale
            logger=logger,
        )
        self._worker.start()

    def _own(self, topics: Topics) -> Topics:
        self._topics.append(topics)
        return topics

    def _make_costmap(self, topics: Topics) -> Costmap:
        return Costmap(
            topics.advertise(OccupancyGrid, costmap.TOPIC, LATCHED),
            self._transforms,
            self._parameters["base_frame"],
            self._parameters["obstacles.ground_z"],
            self._parameters.settings(CostmapParameters, "costmap"),
        )

    def _make_camera(self, name: str, topics: Topics) -> Camera:
        transport = self._parameters.of_camera(name, "image_transport")
        rectified = names_rectified(topics.name(input_topic(name, transport)))
        self._outlines[name] = topics.advertise(ImageMarker, f"~/{name}/taken")
        return Camera(
            name,
            transport,
            topics,
            ObstacleOutputs(
                topics, self._parameters, name, rectified, self._transforms, self._costmap
            ),
            enabled=self._enabled,
            clock=self._clock,
            logger=self._logger,
        )

    def _load(self) -> Detectors:
        # Imports torch, which takes seconds: not before somebody wants the models.
        from anomaly_detector_ros.ros.detectors import Detectors, Wanted

        parameters = self._parameters
        wanted = Wanted(
            parameters["profile"],
            parameters["device"],
            models_path(parameters["models_dir"]),
            parameters["offline"],
            {c.name: parameters.of_camera(c.name, "calibration") for c in self.cameras},
        )
        detectors = Detectors(wanted, self._worker.beat)
        # Kept for the times when models are loaded in place of others, and there is none to ask.
        self._profile_threshold = detectors.load().threshold
        return detectors

    def _renew(self) -> None:
        self._detectors = self._detectors.fresh()

    # -- life --------------------------------------------------------------------------------------

    def listen(self) -> None:
        """Begins to listen to the cameras."""
        depth = self._parameters["obstacles.source"] != "ground"
        self._costmap.clear(self._now())  # what an image in work has left there since
        try:
            for index, camera in enumerate(self.cameras):

                def put(frame: Frame, index: int = index) -> None:
                    self._worker.put(index, frame)

                camera.listen(put, partial(self.teaching.click, camera.name), depth)
            group = MutuallyExclusiveCallbackGroup()
            self._points.subscribe(PointStamped, CLICKED, self._on_point, group, EVENTS)
        except Exception:  # an impossible qos_overrides value, for one
            self.unlisten()
            raise

    def unlisten(self) -> None:
        """Stops listening."""
        self.calibrating.cancel()
        self.teaching.cancel()
        self._points.unsubscribe()
        for camera in self.cameras:
            camera.unlisten()
        self.discard()
        if self._alive():
            self._costmap.clear(self._now())

    def _on_point(self, data: bytes) -> None:
        try:
            self.teaching.click_in_space(deserialize_message(data, PointStamped))
        except Exception as error:  # rclpy raises its own error types, not documented ones
            self._logger.warning(f"a point cannot be deserialised: {error}")

    def discard(self) -> None:
        """Drops the images that wait."""
        self._worker.discard()

    def reset(self) -> None:
        """Forgets what was seen, as when the clock jumps."""
        self._forget_frames()
        self._costmap.clear(self._now())

    def _now(self) -> int:
        nanoseconds: int = self._clock.now().nanoseconds
        return nanoseconds

    def _forget_frames(self) -> None:
        for camera in self.cameras:
            camera.reset()

    def close(self, timeout: float | None) -> bool:
        """Ends everything after the image in work; False if that took longer than ``timeout``."""
        self.unlisten()
        stopped = self._worker.stop(timeout)
        self._close_topics()
        return stopped

    def _close_topics(self) -> None:
        for topics in self._topics:
            topics.close()
        self._transforms.close()

    # -- in force ----------------------------------------------------------------------------------

    @property
    def device(self) -> str:
        """The device the models run on; empty while they are loaded anew."""
        detector = self._detectors.any
        return str(detector.device) if detector else ""

    def threshold(self, camera: str) -> float:
        """The threshold in force for a camera: its own, the node's or the profile's."""
        value: float = self._parameters.of_camera(camera, "threshold")
        return self._profile_threshold if value == UNSET else value

    def calibrate(self) -> str:
        """Takes the next frames as nominal; see `CalibrationService.begin`."""
        if self._detectors.problem:
            problem = self._detectors.problem
            raise UserError(f"the models are not as the profile says ({problem}): later")
        if self.teaching.busy:
            raise UserError("frames are being taught: calibrate after that")
        return self.calibrating.begin()

    def teach(self) -> str:
        """Takes the next frames as nominal; see `TeachingService.begin`."""
        if self.calibrating.busy:
            raise UserError("the node is being calibrated: teach after that")
        return self.teaching.begin()

    # -- once a second -----------------------------------------------------------------------------

    def supervise(self) -> None:
        """Looks after the worker's thread, and tells what no image tells of."""
        timeout = self._parameters["watchdog_timeout"]
        if timeout and self._detectors.loading:
            timeout = max(timeout, LOADING_TIMEOUT)
        done = self._watchdog.check(timeout)
        if done:
            self._logger.error(done)
        self._costmap.refresh(self._now())
        self.teaching.tick()
        for camera in self.cameras:
            camera.publish_labels(self.threshold(camera.name))

    def statuses(self, state: str) -> list[tuple[str, Status]]:
        """The diagnostics of the node, of each camera and of the costmap, by name.

        Args:
            state: label of the lifecycle state.
        """
        node = node_status(
            state,
            self._enabled(),
            self._watchdog.problem,
            self._detectors.any,
            self.threshold(self.cameras[0].name),
            degraded=self._detectors.problem,
            restarts=self._watchdog.restarts,
        )
        warning, taught = self.teaching.report()
        node = replace(node, values={**node.values, **taught})
        if warning and node.level == OK:
            node = replace(node, level=WARN, message=f"{node.message}; {warning}")
        found, shares = [("node", node)], {}
        for camera in self.cameras:
            intake = self._intake(camera, state == "active")
            outputs = camera.states(intake.obstacle, intake.active)
            calibrating = self.calibrating.report(camera.name)
            found.append((camera.name, camera_status(intake, outputs, calibrating=calibrating)))
            shares[camera.name] = outputs["costmap"]
        return [*found, ("costmap", costmap_status(shares, self._costmap.values()))]

    def _intake(self, camera: Camera, active: bool) -> Intake:
        return Intake(
            camera.counters.snapshot(),
            active=active,
            enabled=self._enabled(),
            topic=camera.topics.name(camera.input_topic),
            publishers=camera.topics.publisher_count(camera.input_topic),
            qos=camera.topics.problem(),
        )

    # -- images, in the worker's thread ------------------------------------------------------------

    def _serve(self, turns: list[Turn]) -> None:
        detectors = self._detectors
        groups: dict[str, dict[Turn, Picture]] = {}
        for turn in turns:
            camera = self.cameras[turn.index]
            if not self._enabled():
                turn.settle(Dropped("paused"))
                continue
            picture = camera.decode(
                turn.frame, self._parameters["max_input_age"], self._parameters["grey_range"]
            )
            if isinstance(picture, Dropped):
                camera.drop(turn, picture)
                continue
            similar = camera.skipper.recall(picture.pixels, self._parameters["skip_similar"])
            if similar is None:
                groups.setdefault(detectors.calibration(camera.name), {})[turn] = picture
            else:
                self._finish(turn, picture, similar)
        for group in groups.values():
            self._detect(detectors, group)

    def _detect(self, detectors: Detectors, pictures: dict[Turn, Picture]) -> None:
        """Takes images of cameras with the same calibration through the models in one batch."""
        names = [self.cameras[turn.index].name for turn in pictures]
        level = detectors.level
        before = [
            self.cameras[turn.index].levels.before(picture.stamp)
            for turn, picture in pictures.items()
        ]
        found = detectors.detect(names, [each.pixels for each in pictures.values()], before)
        if detectors.level != level:
            doing = detectors.problem or "memory suffices again: the models are as the profile says"
            self._logger.warning(f"models changed: {doing}")
        done: list[tuple[str, Detection]] = []
        for (turn, picture), detection in zip(pictures.items(), found, strict=True):
            camera = self.cameras[turn.index]
            if isinstance(detection, Exception):
                problem = f"detection failed: {type(detection).__name__}: {detection}"
                camera.drop(turn, Dropped("failed", problem))
            elif self._finish(turn, picture, detection):
                camera.levels.add(detection.level, picture.stamp)
                camera.skipper.remember(picture.pixels, replace(detection, timings={}))
                self.teaching.frame(camera.name, picture, self._masked(camera.name, detection))
                done.append((camera.name, detection))
        # At the end, as this may change what heatmap values mean; and only here, as an image that
        # takes over what was found in another one is no further nominal frame.
        for name, detection in done:
            self.calibrating.frame(name, detectors, detection)

    def _masked(self, camera: str, detection: Detection) -> Detection:
        """With the mask as it was published, but for what a temporal filter made of it."""
        mask = detection.heatmap >= self.threshold(camera)
        return replace(detection, mask=mask)

    def _finish(self, turn: Turn, picture: Picture, detection: Detection) -> bool:
        """Publishes what was found; False if that failed or the turn's thread was given up."""
        camera = self.cameras[turn.index]
        try:
            return camera.finish(
                turn,
                picture,
                detection,
                threshold=self.threshold(camera.name),
                temporal_filter=self._parameters["temporal_filter"],
                jpeg_quality=self._parameters["jpeg_quality"],
            )
        except Exception as error:  # the batch's other images go on
            turn.settle(Dropped("failed", f"{type(error).__name__}: {error}"))
            self._report(turn.index, error)
            return False

    def _report(self, index: int, error: Exception) -> None:
        # While the node shuts down, publishing fails by itself.
        if self._alive() and not self._worker.stopping:
            self.cameras[index].report(error)

    def _min_interval(self, index: int) -> float:
        rate = self._parameters.of_camera(self.cameras[index].name, "max_rate")
        return 1.0 / rate if rate else 0.0
