"""The node's parameters: what values are possible, and their declaration and reading.

No rclpy but in the functions that take a node, and in `descriptor`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.mapping.poses import from_numbers
from anomaly_detector_ros.profiles import load_profile
from anomaly_detector_ros.ros.parameter_table import (
    BY_NAME,
    CAMERA_BY_NAME,
    CAMERA_SPECS,
    Spec,
    camera_parameter,
)

if TYPE_CHECKING:
    from rcl_interfaces.msg import ParameterDescriptor
    from rclpy.node import Node

_TRANSPORTS = ("raw", "compressed")
_SOURCES = ("auto", "depth", "ground")
_CAMERA = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*")
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


def camera_specs(cameras: Sequence[str]) -> dict[str, Spec]:
    """What each camera may have of its own, by full name."""
    return {camera_parameter(c, spec.name): spec for c in cameras for spec in CAMERA_SPECS}


def problem(name: str, value: Any) -> str | None:
    """Why a value cannot be that of the node's parameter, in one line; None if it can."""
    return _problem(name, BY_NAME[name], value)


def _problem(name: str, spec: Spec, value: Any) -> str | None:
    if spec.name == "extrinsics":
        return _extrinsics_problem(name, value)
    if isinstance(spec.default, list):
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
            return f"{name} must be a string array, not {value!r}"
        return _cameras_problem(list(value))
    if type(value) is not type(spec.default):
        return f"{name} must be {_TYPE_NAMES[type(spec.default)]}, not {value!r}"
    if value == spec.default:
        return None
    if spec.minimum is not None and spec.maximum is not None:
        # Written so that NaN, which compares false with everything, is refused.
        if not (math.isfinite(value) and spec.minimum <= value <= spec.maximum):
            return f"{name} must be within [{spec.minimum}, {spec.maximum}], not {value}"
        if value < 0 and spec.constraints:  # -1 is no number of the range but stands for another
            return f"{name} must be {spec.constraints}, not {value}"
    kind = spec.name
    if kind == "image_transport" and value not in _TRANSPORTS:
        return f"{name} must be one of {', '.join(_TRANSPORTS)}, not '{value}'"
    if kind == "device" and not _DEVICE.fullmatch(value):
        return f"{name} must be auto, cpu, cuda or cuda:N, not '{value}'"
    if kind == "obstacles.source" and value not in _SOURCES:
        return f"{name} must be one of {', '.join(_SOURCES)}, not '{value}'"
    if kind in ("base_frame", "costmap.frame") and not value:
        return f"{name} must name a frame"
    if kind == "models_dir" and value and not Path(value).is_dir():
        return f"{name} '{value}' is not a directory"
    if kind == "calibration" and value and not Path(value).is_file():
        return f"{name} '{value}' is not a file"
    return None


_TYPE_NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a number with a point",
    str: "text",
}


def _extrinsics_problem(name: str, value: Any) -> str | None:
    try:
        numbers = [float(number) for number in value]
        if len(numbers) != 16 or any(numbers):
            from_numbers(numbers)
    except (TypeError, ValueError):
        return f"{name} must be 16 numbers, not {value!r}"
    except UserError as error:
        return f"{name}: {error}"
    return None


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
    if twice:
        return f"cameras: '{twice}' is named twice"
    full = [*BY_NAME, *(camera_parameter(c, name) for c in cameras for name in CAMERA_BY_NAME)]
    twice = next((name for name in full if full.count(name) > 1), None)
    return f"cameras: two parameters would be called '{twice}': rename a camera" if twice else None


def refusal(changes: Mapping[str, Any], current: Mapping[str, Any], configured: bool) -> str | None:
    """Why a set of changes must be refused, in one line; None if it may be made.

    Args:
        changes: new values by name; names that are not in the tables are let through.
        current: the values in force, by full name.
        configured: whether models are loaded or being loaded.
    """
    known = {**BY_NAME, **camera_specs(current["cameras"])}
    own = {name: value for name, value in changes.items() if name in known}
    for name, value in own.items():
        if configured and not known[name].live and value != current.get(name):
            return f"{name} can change only while the node is unconfigured: clean it up first"
        reason = _problem(name, known[name], value)
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


def descriptor(name: str, spec: Spec) -> ParameterDescriptor:
    """The parameter's descriptor for rclpy, under its full name."""
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    when = "any time" if spec.live else "at start" if spec.read_only else "while unconfigured"
    made = ParameterDescriptor(
        name=name,
        description=f"{spec.text} Settable {when}.",
        additional_constraints=spec.constraints,
        read_only=spec.read_only,
    )
    if spec.minimum is not None and spec.maximum is not None:
        if isinstance(spec.default, int):
            bounds = IntegerRange(from_value=int(spec.minimum), to_value=int(spec.maximum), step=1)
            made.integer_range = [bounds]
        else:
            made.floating_point_range = [
                FloatingPointRange(from_value=float(spec.minimum), to_value=float(spec.maximum))
            ]
    return made


class Parameters:
    """The parameters of a node, declared with their descriptors.

    Args:
        node: the node.

    Raises:
        UserError: a value given at start is of the wrong type, out of range or impossible.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._of_cameras: set[str] = set()
        for name, spec in BY_NAME.items():
            self._declare(name, spec)
        self.declare_cameras()

    def declare_cameras(self) -> None:
        """Declares the parameters of the cameras there are now, and undeclares those of others.

        Raises:
            UserError: as the class does.
        """
        wanted = camera_specs(self["cameras"])
        for name in self._of_cameras - set(wanted):
            self._node.undeclare_parameter(name)
            self._of_cameras.discard(name)
        for name in wanted.keys() - self._of_cameras:
            self._declare(name, wanted[name])
            self._of_cameras.add(name)

    def __getitem__(self, name: str) -> Any:
        """The value of a parameter by its full name."""
        return self._node.get_parameter(name).value

    def of_camera(self, camera: str, name: str) -> Any:
        """A camera's own value of a parameter, or the node's where it has none."""
        value = self[camera_parameter(camera, name)]
        return self[name] if value == CAMERA_BY_NAME[name].default else value

    def current(self) -> dict[str, Any]:
        """All values by full name."""
        return {name: self[name] for name in (*BY_NAME, *self._of_cameras)}

    def _declare(self, name: str, spec: Spec) -> None:
        from rclpy.exceptions import (
            InvalidParameterTypeException,
            InvalidParameterValueException,
        )

        made = descriptor(name, spec)
        try:
            value = self._node.declare_parameter(name, spec.default, made).value
        except (InvalidParameterTypeException, InvalidParameterValueException) as error:
            raise UserError(f"parameter {name}: {one_line(error)}") from error
        reason = _problem(name, spec, value)
        if reason:
            if not spec.read_only:
                self._node.undeclare_parameter(name)
            raise UserError(f"parameter {reason}")
