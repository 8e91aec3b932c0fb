"""The lifecycle node ``anomaly_detector``."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.lifecycle.node import LifecycleNodeMixin, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_srvs.srv import SetBool

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.ros import parameters
from anomaly_detector_ros.ros.camera import Camera, Settings
from anomaly_detector_ros.ros.diagnostics import camera_status, node_status, to_message
from anomaly_detector_ros.ros.worker import Frame, Worker

if TYPE_CHECKING:
    from anomaly_detector_ros.detector import Detector

NODE_NAME = "anomaly_detector"
WARM_UP_SIZE = (272, 512)
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class AnomalyDetectorNode(LifecycleNodeMixin, Node):
    """Finds anomalies in the images of one or more cameras.

    Models load on configure and are released on cleanup; subscriptions exist while active. The
    models run in a thread of the node's own, so no callback waits for them.

    Transitions run in a callback group of their own: with a multi-threaded executor the node
    answers while models load.

    Args:
        kwargs: for `rclpy.node.Node`.

    Raises:
        UserError: a parameter given at start is impossible.
    """

    def __init__(self, **kwargs: Any) -> None:
        Node.__init__(self, NODE_NAME, **kwargs)
        self._transitions = ReentrantCallbackGroup()
        LifecycleNodeMixin.__init__(self, callback_group=self._transitions)
        self.enabled = True
        self._detector: Detector | None = None
        self._threshold = 0.0
        self._cameras: list[Camera] = []
        self._worker: Worker | None = None
        self._fault = ""
        self._changing = threading.Lock()
        self._configuring = False
        self._guard_change_state()
        parameters.declare(self)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._create_interfaces()

    def _create_interfaces(self) -> None:
        self._own = MutuallyExclusiveCallbackGroup()
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_service(SetBool, "~/enable", self._on_enable, callback_group=self._own)
        self.create_timer(1.0, self._publish_diagnostics, callback_group=self._own)
        if self.value("autostart"):
            # From a timer, so that it happens once the executor spins and services answer.
            self._start_timer = self.create_timer(
                0.0, self._autostart, callback_group=self._transitions
            )

    def value(self, name: str) -> Any:
        """A parameter's value."""
        return self.get_parameter(name).value

    # -- lifecycle ---------------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Loads the models and creates the publishers."""
        self._configuring = True
        try:
            return self._configure()
        finally:
            self._configuring = False

    def _configure(self) -> TransitionCallbackReturn:
        profile, calibration = self.value("profile"), self.value("calibration")
        self.get_logger().info(f"loading the models of profile '{profile}'")
        started = time.monotonic()
        try:
            # Imports torch, which takes seconds: not before somebody wants the models.
            from anomaly_detector_ros.detector import Detector

            detector = Detector.from_profile(
                profile,
                device=self.value("device"),
                models_dir=parameters.models_path(self.value("models_dir")),
                offline=self.value("offline"),
                overrides={"calibration": {"file": calibration}} if calibration else None,
            )
            self._threshold = detector.threshold
            self._detector = detector
            # The first run of a model takes seconds longer; no camera image should wait for it.
            detector.detect(np.full((*WARM_UP_SIZE, 3), 127, np.uint8))
            self._open()
        except UserError as error:
            return self._fail(str(error))
        except Exception as error:  # whatever a damaged model file or a driver makes torch raise
            return self._fail(f"cannot load profile '{profile}': {type(error).__name__}: {error}")
        self._fault = ""
        took = time.monotonic() - started
        self.get_logger().info(f"models loaded on {detector.device} in {took:.1f} s")
        return SUCCESS

    def _open(self) -> None:
        """Creates the cameras and the worker that serves them."""
        transport = self.value("image_transport")
        for name in self.value("cameras"):
            self._cameras.append(Camera(self, name, transport))
            self._cameras[-1].advertise()
        self._worker = Worker(
            [camera.counters for camera in self._cameras],
            self._serve,
            min_interval=self._min_interval,
            report=self._report,
        )
        self._worker.start()

    def _fail(self, reason: str) -> TransitionCallbackReturn:
        self._release()
        self._fault = one_line(reason)
        self.get_logger().error(f"not configured: {self._fault}")
        return FAILURE

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begins to listen to the cameras."""
        result = super().on_activate(state)
        worker = self._worker
        if result != SUCCESS or worker is None:
            return FAILURE
        try:
            for index, camera in enumerate(self._cameras):

                def put(frame: Frame, index: int = index) -> None:
                    worker.put(index, frame)

                camera.subscribe(put)
        except Exception as error:  # an impossible qos_overrides value, for one
            self._unsubscribe()
            self.get_logger().error(f"not activated: {type(error).__name__}: {error}")
            return FAILURE
        topics = ", ".join(self.resolve_topic_name(c.input_topic) for c in self._cameras)
        self.get_logger().info(f"active, listening to {topics}")
        return SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stops listening; the image in work is finished but not published."""
        self._unsubscribe()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Releases the models."""
        self._release()
        return SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Releases everything from any state."""
        self._release()
        return SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Releases everything, so that the node can be configured again."""
        self._release()
        return SUCCESS

    def _unsubscribe(self) -> None:
        for camera in self._cameras:
            camera.unsubscribe()
        if self._worker is not None:
            self._worker.discard()

    def _release(self, timeout: float | None = None) -> bool:
        """Undoes configure, after the image in work; False if that took longer than ``timeout``."""
        self._unsubscribe()
        worker, self._worker = self._worker, None
        stopped = worker is None or worker.stop(timeout)
        cameras, self._cameras = self._cameras, []
        for camera in cameras:
            camera.unadvertise()
        self._detector = None
        return stopped

    def close(self, timeout: float) -> bool:
        """Stops the worker before the node is destroyed; True if it ended within ``timeout`` s."""
        return self._release(timeout)

    @property
    def busy(self) -> bool:
        """Whether a transition is under way in some thread."""
        return self._changing.locked()

    def _autostart(self) -> None:
        self._start_timer.cancel()
        with self._changing:
            if self._state() == "unconfigured" and self.trigger_configure() == SUCCESS:
                self.trigger_activate()

    def _guard_change_state(self) -> None:
        """Answers an impossible transition with ``success = False``.

        rclpy lets the state machine's exception end the executor, and two transitions at once run
        into each other.
        """
        original = self._service_change_state.callback

        def guarded(request: Any, response: Any) -> Any:
            if not self._changing.acquire(blocking=False):
                self.get_logger().error("another transition is under way: try again after it")
                response.success = False
                return response
            try:
                return original(request, response)
            except Exception as error:
                line = f"no such transition from '{self._state()}': {one_line(error, 200)}"
                self.get_logger().error(line)
                response.success = False
                return response
            finally:
                self._changing.release()

        self._service_change_state.callback = guarded

    def _state(self) -> str:
        return self._state_machine.current_state[1]

    # -- images, in the worker's thread ------------------------------------------------------------

    def _serve(self, index: int, frame: Frame) -> None:
        camera, detector = self._cameras[index], self._detector
        if detector is None or not self.enabled:
            camera.counters.dropped("paused" if detector else "discarded")
            return
        settings = Settings(
            self.threshold(), self.value("max_input_age"), self.value("jpeg_quality")
        )
        camera.process(frame, detector, settings)

    def _report(self, index: int, error: Exception) -> None:
        worker = self._worker
        # While the node shuts down, publishing fails by itself.
        if worker is not None and not worker.stopping and self.context.ok():
            self._cameras[index].report(error)

    def _min_interval(self) -> float:
        rate = self.value("max_rate")
        return 1.0 / rate if rate else 0.0

    def threshold(self) -> float:
        """The threshold in force: the parameter, or the profile's."""
        value = self.value("threshold")
        return self._threshold if value == parameters.PROFILE_THRESHOLD else value

    # -- callbacks ---------------------------------------------------------------------------------

    def _on_set_parameters(self, changed: list[Parameter]) -> SetParametersResult:
        current = {name: self.value(name) for name in parameters.BY_NAME}
        configured = self._configuring or self._detector is not None
        changes = {parameter.name: parameter.value for parameter in changed}
        reason = parameters.refusal(changes, current, configured)
        return SetParametersResult(successful=reason is None, reason=reason or "")

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self.enabled = request.data
        if not self.enabled and self._worker is not None:
            self._worker.discard()
        response.success = True
        response.message = f"processing {'enabled' if self.enabled else 'paused'}"
        if self._state() != "active":
            response.message += f"; the node is {self._state()}"
        return response

    def _publish_diagnostics(self) -> None:
        state, detector = self._state(), self._detector
        prefix = self.get_fully_qualified_name().lstrip("/")
        threshold = self.threshold() if detector else 0.0
        named = [
            (f"{prefix}: node", node_status(state, self.enabled, self._fault, detector, threshold))
        ]
        for camera in list(self._cameras):
            status = camera_status(
                camera.counters.snapshot(),
                active=state == "active",
                enabled=self.enabled,
                topic=self.resolve_topic_name(camera.input_topic),
                publishers=camera.publisher_count(),
                qos=camera.qos_problem,
            )
            named.append((f"{prefix}: {camera.name}", status))
        hardware = str(detector.device) if detector else ""
        stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(to_message(stamp, hardware, named))
