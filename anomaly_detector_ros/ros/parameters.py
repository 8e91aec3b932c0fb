"""The node's parameters: one table that makes their descriptors and judges their values.

No rclpy but in `declare` and `descriptor`, which make rclpy's objects from the table.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.profiles import DEFAULT_PROFILE, load_profile

if TYPE_CHECKING:
    from rcl_interfaces.msg import ParameterDescriptor
    from rclpy.node import Node

PROFILE_THRESHOLD = -1.0
"""Value of the parameter ``threshold`` that stands for the profile's own."""

_TRANSPORTS = ("raw", "compressed")
_CAMERA = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*")
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


@dataclass(frozen=True)
class Spec:
    """One parameter.

    Attributes:
        name, default, text: as ``ros2 param describe`` shows them.
        minimum, maximum: range of a number, both included; None: not a number.
        constraints: what else a value must fulfil, in words.
        read_only: only set at start.
        live: may change at any time; otherwise only while the node is unconfigured.
    """

    name: str
    default: Any
    text: str
    minimum: float | None = None
    maximum: float | None = None
    constraints: str = ""
    read_only: bool = False
    live: bool = False


SPECS: tuple[Spec, ...] = (
    Spec(
        "autostart",
        True,
        "Configure and activate by itself at start; false leaves it to a lifecycle manager.",
        read_only=True,
    ),
    Spec(
        "cameras",
        ["camera"],
        "Names of the cameras: images are read from <camera>/image_raw, outputs published under "
        "~/<camera>/.",
        constraints="at least one relative topic name, none twice",
    ),
    Spec(
        "image_transport",
        "raw",
        "raw: <camera>/image_raw is read; compressed: <camera>/image_raw/compressed.",
        constraints="raw or compressed",
    ),
    Spec(
        "profile",
        DEFAULT_PROFILE,
        "Models and settings to detect with: the name of a profile or the path of a YAML file.",
        constraints="a name in profiles.yaml, or a path that ends in .yaml",
    ),
    Spec(
        "models_dir",
        "",
        "Directory with a profiles.yaml to use in place of the installed one; empty: installed.",
        constraints="empty or an existing directory",
    ),
    Spec(
        "calibration",
        "",
        "Calibration file, as anomaly-detector calibrate writes it; empty: the profile's own, if "
        "it has one.",
        constraints="empty or an existing file",
    ),
    Spec(
        "device",
        "auto",
        "Device the models run on; auto: CUDA where there is one.",
        constraints="auto, cpu, cuda or cuda:N",
    ),
    Spec(
        "offline",
        False,
        "Never fetch missing models from the network; configuring fails instead.",
    ),
    Spec(
        "threshold",
        PROFILE_THRESHOLD,
        "Heatmap value from which a pixel of the mask is an anomaly; -1: the profile's own.",
        minimum=-1.0,
        maximum=1.0,
        constraints="0 to 1, or -1",
        live=True,
    ),
    Spec(
        "max_input_age",
        1.0,
        "Images older than this many seconds when their turn comes are dropped and counted; 0: "
        "none is. Age is the node's clock minus the header's stamp. Where the stamp cannot be of "
        "the node's clock (zero, in the future, or over 10 s and over twice this limit old on "
        "arrival, as in a bag replayed without simulated time) it is the time since arrival.",
        minimum=0.0,
        maximum=3600.0,
        live=True,
    ),
    Spec(
        "max_rate",
        0.0,
        "Most images per second and camera that are processed; 0: as many as the device manages.",
        minimum=0.0,
        maximum=1000.0,
        live=True,
    ),
    Spec(
        "jpeg_quality",
        90,
        "JPEG quality of overlay/compressed.",
        minimum=1,
        maximum=100,
        live=True,
    ),
)
BY_NAME: dict[str, Spec] = {spec.name: spec for spec in SPECS}


def problem(name: str, value: Any) -> str | None:
    """Why a value cannot be that of the parameter, in one line; None if it can."""
    spec = BY_NAME[name]
    if isinstance(spec.default, list):
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
            return f"{name} must be a string array, not {value!r}"
        return _cameras_problem(list(value))
    if type(value) is not type(spec.default):
        return f"{name} must be {_TYPE_NAMES[type(spec.default)]}, not {value!r}"
    if spec.minimum is not None and spec.maximum is not None:
        # Written so that NaN, which compares false with everything, is refused.
        if not (math.isfinite(value) and spec.minimum <= value <= spec.maximum):
            return f"{name} must be within [{spec.minimum}, {spec.maximum}], not {value}"
        if name == "threshold" and value < 0 and value != PROFILE_THRESHOLD:
            return f"threshold must be within [0, 1], or -1 for the profile's own, not {value}"
    if name == "image_transport" and value not in _TRANSPORTS:
        return f"image_transport must be one of {', '.join(_TRANSPORTS)}, not '{value}'"
    if name == "device" and not _DEVICE.fullmatch(value):
        return f"device must be auto, cpu, cuda or cuda:N, not '{value}'"
    if name == "models_dir" and value and not Path(value).is_dir():
        return f"models_dir '{value}' is not a directory"
    if name == "calibration" and value and not Path(value).is_file():
        return f"calibration '{value}' is not a file"
    return None


_TYPE_NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a number with a point",
    str: "text",
}


def _cameras_problem(cameras: list[str]) -> str | None:
    if not cameras:
        return "cameras must name at least one camera"
    for camera in cameras:
        if not _CAMERA.fullmatch(camera):
            return (
                f"cameras: '{camera}' is not a relative topic name (letters, digits, _ and /): "
                "give one, and remap topics that are elsewhere"
            )
    twice = next((camera for camera in cameras if cameras.count(camera) > 1), None)
    return f"cameras: '{twice}' is named twice" if twice else None


def refusal(changes: Mapping[str, Any], current: Mapping[str, Any], configured: bool) -> str | None:
    """Why a set of changes must be refused, in one line; None if it may be made.

    Args:
        changes: new values by name; names that are not in the table are let through.
        current: the values in force.
        configured: whether models are loaded or being loaded.
    """
    own = {name: value for name, value in changes.items() if name in BY_NAME}
    for name, value in own.items():
        if configured and not BY_NAME[name].live and value != current.get(name):
            return f"{name} can change only while the node is unconfigured: clean it up first"
        reason = problem(name, value)
        if reason:
            return reason
    if "profile" in own or "models_dir" in own:
        merged = {**current, **own}
        try:
            load_profile(merged["profile"], models_dir=models_path(merged["models_dir"]))
        except UserError as error:
            return str(error)
    return None


def models_path(models_dir: str) -> Path | None:
    """The parameter ``models_dir`` as `profiles` and `Detector` want it."""
    return Path(models_dir) if models_dir else None


def descriptor(spec: Spec) -> ParameterDescriptor:
    """The parameter's descriptor for rclpy."""
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    when = "any time" if spec.live else "at start" if spec.read_only else "while unconfigured"
    made = ParameterDescriptor(
        name=spec.name,
        description=f"{spec.text} Settable {when}.",
        additional_constraints=spec.constraints,
        read_only=spec.read_only,
    )
    if spec.minimum is not None and spec.maximum is not None:
        if isinstance(spec.default, int):
            bounds = IntegerRange(from_value=int(spec.minimum), to_value=int(spec.maximum))
            made.integer_range = [bounds]
        else:
            made.floating_point_range = [
                FloatingPointRange(from_value=float(spec.minimum), to_value=float(spec.maximum))
            ]
    return made


def declare(node: Node) -> None:
    """Declares every parameter of the table with its descriptor.

    Raises:
        UserError: a value given at start is of the wrong type, out of range or impossible.
    """
    from rclpy.exceptions import (
        InvalidParameterTypeException,
        InvalidParameterValueException,
    )

    for spec in SPECS:
        try:
            value = node.declare_parameter(spec.name, spec.default, descriptor(spec)).value
        except (InvalidParameterTypeException, InvalidParameterValueException) as error:
            raise UserError(f"parameter {spec.name}: {one_line(error)}") from error
        reason = problem(spec.name, value)
        if reason:
            raise UserError(f"parameter {reason}")
