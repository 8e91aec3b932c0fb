"""The lifecycle node ``anomaly_detector``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.clock import Clock, JumpThreshold
from rclpy.clock_type import ClockType
from rclpy.duration import Duration
from rclpy.lifecycle.node import (
    LifecycleNode,
    LifecycleNodeMixin,
    LifecycleState,
    TransitionCallbackReturn,
)
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_srvs.srv import SetBool, Trigger

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.ros.diagnostics import node_status, to_message
from anomaly_detector_ros.ros.parameters import Parameters, refusal
from anomaly_detector_ros.ros.qos import Topics
from anomaly_detector_ros.ros.session import Session
from anomaly_detector_ros.ros.transforms import make_transforms

NODE_NAME = "anomaly_detector"
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class AnomalyDetectorNode(LifecycleNode):
    """Finds anomalies in the images of one or more cameras.

    Models load on configure and are released on cleanup; subscriptions exist while active. The
    models run in a thread of the node's own, so no callback waits for them.

    With `NodeExecutor` or a multi-threaded executor the node answers while models load.

    Args:
        kwargs: for `rclpy.node.Node`.

    Attributes:
        transitions: callback group of the lifecycle, whose callbacks take long.
        session: what exists while the node is configured, else None.
        enabled: False while paused by ~/enable.
        fault: why the last configuration failed; empty if it did not.

    Raises:
        UserError: a parameter given at start is impossible.
    """

    def __init__(self, **kwargs: Any) -> None:
        # As LifecycleNode does, which has no argument for the callback group.
        Node.__init__(self, NODE_NAME, **kwargs)
        self.transitions = ReentrantCallbackGroup()
        LifecycleNodeMixin.__init__(self, callback_group=self.transitions)
        self.session: Session | None = None
        self.enabled = True
        self.fault = ""
        self._changing = threading.Lock()
        self._configuring = False
        self._guard_change_state()
        self.parameters = Parameters(self)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        if hasattr(self, "add_post_set_parameters_callback"):  # not in Humble
            self.add_post_set_parameters_callback(self._on_parameters_set)
        for line in self.parameters.unknown():
            self.get_logger().warning(line)
        self._create_interfaces()

    def _create_interfaces(self) -> None:
        group = MutuallyExclusiveCallbackGroup()
        self.create_service(SetBool, "~/enable", self._on_enable, callback_group=group)
        for name, ask in (
            ("~/calibrate", lambda session: session.calibrate()),
            ("~/teach", lambda session: session.teach()),
            ("~/undo_lesson", lambda session: session.teaching.undo()),
        ):
            answer = partial(self._on_trigger, ask)
            self.create_service(Trigger, name, answer, callback_group=group)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # The node's own timers run whatever simulated time does.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(
            1.0, self._tick, callback_group=MutuallyExclusiveCallbackGroup(), clock=steady
        )
        backward = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1))
        self._jumps = self.get_clock().create_jump_callback(
            backward, post_callback=self._on_clock_jump
        )
        if self.parameters["autostart"]:
            # From a timer, so that it happens once the executor spins and services answer.
            self._start_timer = self.create_timer(
                0.0, self._autostart, callback_group=self.transitions, clock=steady
            )

    # -- lifecycle ---------------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Loads the models and creates the publishers."""
        self._configuring = True
        try:
            return self._configure()
        finally:
            self._configuring = False

    def _configure(self) -> TransitionCallbackReturn:
        profile = self.parameters["profile"]
        self.get_logger().info(f"loading the models of profile '{profile}'")
        started = time.monotonic()
        try:
            self.parameters.declare_cameras()
            self.session = Session(
                self.parameters,
                self.get_fully_qualified_name(),
                topics=lambda: Topics(self, self.get_logger().warning),
                transforms=make_transforms(self),
                enabled=lambda: self.enabled,
                alive=self.context.ok,
                clock=self.get_clock(),
                logger=self.get_logger(),
            )
        except UserError as error:
            return self._fail(str(error))
        except Exception as error:  # whatever a damaged model file or a driver makes torch raise
            return self._fail(f"cannot load profile '{profile}': {type(error).__name__}: {error}")
        self.fault = ""
        took = time.monotonic() - started
        self.get_logger().info(f"models loaded on {self.session.device} in {took:.1f} s")
        return SUCCESS

    def _fail(self, reason: str) -> TransitionCallbackReturn:
        self.fault = one_line(reason)
        self.get_logger().error(f"not configured: {self.fault}")
        return FAILURE

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begins to listen to the cameras."""
        result = super().on_activate(state)
        session = self.session
        if result != SUCCESS or session is None:
            return FAILURE
        try:
            session.listen()
        except Exception as error:  # an impossible qos_overrides value, for one
            self.get_logger().error(f"not activated: {type(error).__name__}: {error}")
            return FAILURE
        for line in self.parameters.unknown_qos():
            self.get_logger().warning(line)
        topics = ", ".join(self.resolve_topic_name(c.input_topic) for c in session.cameras)
        self.get_logger().info(f"active, listening to {topics}")
        return SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stops listening; the image in work is finished but not published."""
        if self.session is not None:
            self.session.unlisten()
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

    def _release(self) -> None:
        # As long as the watchdog would wait for an image that hangs.
        self.close(self.parameters["watchdog_timeout"] or None)

    def close(self, timeout: float | None) -> bool:
        """Undoes configure, after the image in work; False if that took longer than ``timeout``."""
        session, self.session = self.session, None
        return session is None or session.close(timeout)

    @property
    def busy(self) -> bool:
        """Whether a transition is under way in some thread."""
        return self._changing.locked()

    @property
    def state(self) -> str:
        """Label of the lifecycle state.

        rclpy tells a node its own state by a service only, so this reads a private attribute.
        """
        label: str = self._state_machine.current_state[1]
        return label

    def _autostart(self) -> None:
        self._start_timer.cancel()
        with self._changing:
            if self.state == "unconfigured" and self.trigger_configure() == SUCCESS:
                self.trigger_activate()

    def _guard_change_state(self) -> None:
        """Answers an impossible transition with ``success = False``.

        rclpy lets the state machine's exception end the executor, and two transitions at once run
        into each other. It has no hook for that, so this replaces the callback of a private
        attribute.
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
                line = f"no such transition from '{self.state}': {one_line(error, 200)}"
                self.get_logger().error(line)
                response.success = False
                return response
            finally:
                self._changing.release()

        self._service_change_state.callback = guarded

    # -- callbacks ---------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Once a second: looks after the session and tells on /diagnostics how things are."""
        session, prefix = self.session, self.get_fully_qualified_name().lstrip("/")
        if session is None:
            found = [("node", node_status(self.state, self.enabled, self.fault, None, 0.0))]
        else:
            session.supervise()
            found = session.statuses(self.state)
        named = [(f"{prefix}: {name}", status) for name, status in found]
        device = session.device if session else ""
        self._diagnostics.publish(to_message(self.get_clock().now().to_msg(), device, named))

    def _on_set_parameters(self, changed: list[Parameter]) -> SetParametersResult:
        configured = self._configuring or self.session is not None
        changes = {parameter.name: parameter.value for parameter in changed}
        reason = refusal(changes, self.parameters.current(), configured)
        return SetParametersResult(successful=reason is None, reason=reason or "")

    def _on_parameters_set(self, changed: list[Parameter]) -> None:
        if not any(parameter.name == "cameras" for parameter in changed):
            return
        try:
            self.parameters.declare_cameras()
        except UserError as error:  # said again, with effect, on configure
            self.get_logger().error(str(error))

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self.enabled = request.data
        if not self.enabled and self.session is not None:
            self.session.discard()
        response.success = True
        response.message = f"processing {'enabled' if self.enabled else 'paused'}"
        if self.state != "active":
            response.message += f"; the node is {self.state}"
        return response

    def _on_trigger(
        self,
        ask: Callable[[Session], str],
        request: Trigger.Request,
        response: Trigger.Response,
    ) -> Trigger.Response:
        session = self.session
        try:
            if session is None or self.state != "active" or not self.enabled:
                raise UserError("no frames come: activate the node and enable it first")
            response.message = ask(session)
            response.success = True
        except Exception as error:  # without an answer the caller would wait for ever
            response.message = one_line(error)
            response.success = False
        return response

    def _on_clock_jump(self, jump: Any) -> None:
        """Simulated time went backwards, or began or ended: what was seen is of another time."""
        if self.session is not None:
            self.session.reset()
