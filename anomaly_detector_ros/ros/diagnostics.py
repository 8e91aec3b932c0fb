"""What the node says of itself on /diagnostics, once a second.

The judgements are plain functions of plain values; only `to_message` knows ROS messages.
diagnostic_updater is not among the Python wheels of ROS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from anomaly_detector_ros.ros.counters import WINDOW, Snapshot

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


def camera_status(
    snapshot: Snapshot,
    *,
    active: bool,
    enabled: bool,
    topic: str,
    publishers: int,
    qos: str,
    calibrating: tuple[str, Mapping[str, str]] = ("", {}),
) -> Status:
    """One camera.

    Args:
        snapshot: its counters.
        active: whether the node is active.
        enabled: False while paused by ~/enable.
        topic: the input topic.
        publishers: publishers on that topic.
        qos: what was last found incompatible; empty if nothing was.
        calibrating: a warning, empty if there is none, and details; see
            `CalibrationService.report`.
    """
    level, message = _judge(snapshot, active, enabled, topic, publishers, qos)
    values = {
        "input topic": topic,
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
    if qos:
        values["incompatible QoS"] = qos
    warning, details = calibrating
    values |= details
    if warning and active and enabled and level == OK:
        level, message = WARN, warning
    return Status(level, message, values)


def _judge(
    snapshot: Snapshot, active: bool, enabled: bool, topic: str, publishers: int, qos: str
) -> tuple[int, str]:
    if not active:
        return OK, "not active"
    if not enabled:
        return OK, "paused"
    recent = snapshot.recent
    troubles = {r: recent[r] for r in ("bad", "failed", "hung", "too_old") if recent.get(r)}
    if troubles:
        words = ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in troubles.items())
        message = f"{words} within {WINDOW:g} s: {snapshot.problem}"
        return (WARN if recent.get("processed") else ERROR), message
    if snapshot.silence > SILENCE:
        if qos:
            return ERROR, qos
        why = "nobody publishes there" if publishers == 0 else f"{publishers} publish there"
        return WARN, f"no image on '{topic}' for {snapshot.silence:.0f} s, {why}"
    if qos:
        return WARN, qos
    return OK, f"{snapshot.rate:.1f} of {snapshot.input_rate:.1f} images/s processed"


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
