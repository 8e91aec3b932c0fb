"""What the node says of itself on /diagnostics, once a second.

The judgements are plain functions of plain values; only `to_message` knows ROS messages.
diagnostic_updater is not among the Python wheels of ROS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from anomaly_detector_ros.ros.counters import WINDOW, Snapshot
from anomaly_detector_ros.ros.output import OutputState

if TYPE_CHECKING:
    from diagnostic_msgs.msg import DiagnosticArray

OK, WARN, ERROR = 0, 1, 2
SILENCE = 3.0
"""Seconds without an image after which a camera is reported."""
UNCALIBRATED = "uncalibrated"


@dataclass(frozen=True)
class Status:
    """One line of the diagnostics and its details."""

    level: int
    message: str
    values: Mapping[str, str] = field(default_factory=dict)


def node_status(
    state: str,
    enabled: bool,
    fault: str,
    detector: Any | None,
    threshold: float,
    *,
    degraded: str = "",
    restarts: int = 0,
) -> Status:
    """The node as a whole.

    Args:
        state: label of the lifecycle state.
        enabled: False while paused by ~/enable.
        fault: why the last configuration failed, or why no image is worked on any more; empty if
            neither is so.
        detector: the `Detector`, None while there is none.
        threshold: the threshold in force.
        degraded: what the models do without because memory ran out; empty if nothing.
        restarts: how often the detector's thread was started anew because it hung.
    """
    values = {"state": state, "enabled": str(enabled).lower()}
    if detector is None:
        if fault:
            return Status(ERROR, fault, values)
        return Status(WARN if state == "unconfigured" else OK, state, values)
    profile = detector.profile
    calibrated = f"calibrated ({profile.calibration.get('file')})"
    values |= {
        "profile": profile.name,
        "denoiser": str(profile.denoiser.get("model", "")),
        "sampler": str(profile.sampler.get("name", "")),
        "features": str(profile.features.get("name", "")),
        "upsampler": str(profile.upsampler.get("name", "")),
        "distance": str(profile.distance.get("name", "")),
        "segmenter": str(profile.segmenter.get("name", "")),
        "device": str(detector.device),
        "device memory (MiB)": f"{detector.memory_bytes() / 2**20:.0f}",
        "calibration": calibrated if detector.calibrated else UNCALIBRATED,
        "threshold": f"{threshold:g}",
        "memory": f"short: {degraded}" if degraded else "suffices",
        "detector thread restarts": str(restarts),
    }
    if fault:
        return Status(ERROR, fault, values)
    message = state if enabled else f"{state}, paused"
    if degraded:
        return Status(WARN, f"{message}, memory ran out: {degraded}", values)
    return Status(OK, message if detector.calibrated else f"{message}, {UNCALIBRATED}", values)


@dataclass(frozen=True)
class Intake:
    """How the images of a camera come in.

    Attributes:
        snapshot: the camera's counters.
        active: whether the node is active.
        enabled: False while paused by ~/enable.
        topic: the input topic.
        publishers: publishers on that topic.
        qos: what was last found incompatible; empty if nothing was.
    """

    snapshot: Snapshot
    active: bool
    enabled: bool
    topic: str
    publishers: int
    qos: str

    def judge(self) -> tuple[int, str, bool]:
        """Level and message, and whether it stops every output that is made of images."""
        snapshot = self.snapshot
        if not self.active:
            return OK, "not active", True
        if not self.enabled:
            return OK, "paused", True
        recent = snapshot.recent
        troubles = {r: recent[r] for r in ("bad", "failed", "hung", "too_old") if recent.get(r)}
        if troubles:
            words = ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in troubles.items())
            message = f"{words} within {WINDOW:g} s: {snapshot.problem}"
            some = bool(recent.get("processed"))
            return WARN if some else ERROR, message, not some
        if snapshot.silence > SILENCE:
            if self.qos:
                return ERROR, self.qos, True
            others = self.publishers
            why = "nobody publishes there" if others == 0 else f"{others} publish there"
            message = f"no image on '{self.topic}' for {snapshot.silence:.0f} s, {why}"
            return WARN, message, True
        if self.qos:
            return WARN, self.qos, False
        done = f"{snapshot.rate:.1f} of {snapshot.input_rate:.1f} images/s processed"
        return OK, done, False

    @property
    def obstacle(self) -> str:
        """Why no output can be made of images now; empty if some can."""
        _, message, stops = self.judge()
        return message if stops else ""


def camera_status(
    intake: Intake,
    outputs: Mapping[str, OutputState] = {},
    *,
    calibrating: tuple[str, Mapping[str, str]] = ("", {}),
) -> Status:
    """One camera.

    Args:
        intake: how its images come in.
        outputs: how it stands with what is made of them, by name.
        calibrating: a warning, empty if there is none, and details; see
            `CalibrationService.report`.
    """
    level, message, _ = intake.judge()
    snapshot = intake.snapshot
    values = {
        "input topic": intake.topic,
        "input rate (Hz)": f"{snapshot.input_rate:.2f}",
        "rate (Hz)": f"{snapshot.rate:.2f}",
        "received": str(snapshot.received),
        "processed": str(snapshot.processed),
        "pending": str(snapshot.pending),
        "dropped": str(sum(snapshot.dropped.values())),
    }
    values |= {f"dropped: {reason}": str(n) for reason, n in snapshot.dropped.items()}
    values["input age (s)"] = _seconds(snapshot.age)
    values["input age, largest (s)"] = _seconds(snapshot.max_age)
    values["input age by"] = "stamp" if snapshot.own_clock else "arrival, stamps of another clock"
    values["latency (s)"] = _seconds(snapshot.latency)
    values |= {f"latency: {stage} (s)": _seconds(s) for stage, s in snapshot.stages.items()}
    if snapshot.problem:
        values["last problem"] = snapshot.problem
    if intake.qos:
        values["incompatible QoS"] = intake.qos
    warning, details = calibrating
    values |= details
    if warning and intake.active and intake.enabled and level == OK:
        level, message = WARN, warning
    level, message = _with_outputs(level, message, outputs)
    return Status(level, message, values | _listed(outputs))


def costmap_status(shares: Mapping[str, OutputState], values: Mapping[str, str]) -> Status:
    """The costmap that all cameras share.

    Args:
        shares: whether each camera adds to it, by name.
        values: details.
    """
    listened = any(share.listened for share in shares.values())
    named = {f"share of {camera}": share for camera, share in shares.items()}
    level, message = _with_outputs(OK, "fine" if listened else "nobody listens", named)
    return Status(level, message, {**values, **_listed(named)})


def _with_outputs(level: int, message: str, outputs: Mapping[str, OutputState]) -> tuple[int, str]:
    """A level and message, raised where somebody listens to an output that cannot be made."""
    broken = {name: state for name, state in outputs.items() if state.problem}
    if not broken:
        return level, message
    if all(state.problem != message for state in broken.values()):
        name, worst = max(broken.items(), key=lambda item: item[1].seconds)
        others = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        words = f"{name}{others} {worst}"
        message = words if level == OK else f"{message}; {words}"
    return max(level, ERROR if any(s.late for s in broken.values()) else WARN), message


def _listed(outputs: Mapping[str, OutputState]) -> dict[str, str]:
    return {f"output: {name}": str(state) for name, state in outputs.items()}


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def to_message(stamp: Any, hardware: str, named: Sequence[tuple[str, Status]]) -> DiagnosticArray:
    """The statuses, by name, as a message."""
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

    message = DiagnosticArray()
    message.header.stamp = stamp
    message.status = [
        DiagnosticStatus(
            level=bytes([status.level]),
            name=name,
            message=status.message,
            hardware_id=hardware,
            values=[KeyValue(key=key, value=value) for key, value in status.values.items()],
        )
        for name, status in named
    ]
    return message
