"""The node's parameters: the table that says all of them, and their checks and declaration.

The parameter file, the documentation and the launch arguments are made of the table; see
`parameter_files`. No rclpy but in `descriptor` and `Parameters`.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic.fields import FieldInfo

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.profiles import DEFAULT_PROFILE, load_profile
from anomaly_detector_ros.ros.given import unknown_parameters

if TYPE_CHECKING:
    from rcl_interfaces.msg import ParameterDescriptor
    from rclpy.node import Node
    from rclpy.parameter import Parameter

UNSET = -1.0
"""A number that stands for another one: the profile's threshold, or the node's own parameter."""
QOS_OVERRIDES = "qos_overrides."
_CAMERA = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*")
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


@dataclass(frozen=True)
class Rule:
    """What a value must be beyond its type, and when it can be set.

    Attributes:
        bounds: least and largest of a number.
        choices: the texts it may be; empty: any.
        constraints: what else a value must fulfil, in words. Of a number: that below 0 only its
            default is possible.
        check: what is wrong with a value that is not the default, for a message that begins with
            the name; None if nothing is.
        read_only: only set at start.
        live: may change at any time; otherwise only while the node is unconfigured.
        launch: an argument of the launch file, too.
    """

    bounds: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()
    constraints: str = ""
    check: Callable[[Any], str | None] | None = None
    read_only: bool = False
    live: bool = False
    launch: bool = False

    @property
    def possible(self) -> str:
        """What a value must be beyond its type and bounds, in words; empty if nothing."""
        *others, last = self.choices or ("",)
        return self.constraints or (f"{', '.join(others)} or {last}" if others else "")

    @property
    def when(self) -> str:
        """When it can be set, in words."""
        return "any time" if self.live else "at start" if self.read_only else "while unconfigured"


@dataclass(frozen=True, kw_only=True)
class Spec(Rule):
    """One parameter: name, default and text as ``ros2 param describe`` shows them, and its rule."""

    name: str
    default: Any
    text: str


# -- checks ----------------------------------------------------------------------------------------


def _directory(value: str) -> str | None:
    return None if Path(value).is_dir() else f" '{value}' is not a directory"


def _file(value: str) -> str | None:
    return None if Path(value).is_file() else f" '{value}' is not a file"


def _frame(value: str) -> str | None:
    return None if value else " must name a frame"


def _device(value: str) -> str | None:
    known = _DEVICE.fullmatch(value)
    return None if known else f" must be auto, cpu, cuda or cuda:N, not '{value}'"


def _extrinsics(value: Any) -> str | None:
    # Imports SciPy, for which launch files would wait.
    from anomaly_detector_ros.mapping.poses import from_numbers

    try:
        numbers = [float(number) for number in value]
        if len(numbers) != 16 or any(numbers):
            from_numbers(numbers)
    except (TypeError, ValueError):
        return f" must be 16 numbers, not {value!r}"
    except UserError as error:
        return f": {error}"
    return None


def _range(value: Any) -> str | None:
    try:
        low, high = map(float, value)
    except (TypeError, ValueError):
        return f" must be two numbers, not {value!r}"
    if low == high == 0 or (low < high and math.isfinite(high - low)):
        return None
    return f" must be two finite numbers, the lower one first, not {value!r}"


def _cameras(cameras: Any) -> str | None:
    if not isinstance(cameras, (list, tuple)) or not all(isinstance(each, str) for each in cameras):
        return f" must be a string array, not {cameras!r}"
    if not cameras:
        return " must name at least one camera"
    for camera in cameras:
        if not _CAMERA.fullmatch(camera):
            return (
                f": '{camera}' is not a relative topic name (letters, digits, _ and /): "
                "give one, and remap topics that are elsewhere"
            )
    twice = _twice(list(cameras))
    if twice:
        return f": '{twice}' is named twice"
    twice = _twice([*BY_NAME, *(camera_parameter(c, n) for c in cameras for n in CAMERA_BY_NAME)])
    return f": two parameters would be called '{twice}': rename a camera" if twice else None


def _twice(names: list[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)


# -- the table: each parameter's type, rule, default and text --------------------------------------

_table = pydantic_dataclass(frozen=True, config=ConfigDict(use_attribute_docstrings=True))
_FRAME = Rule(constraints="not empty", check=_frame)
_FILE = Rule(constraints="empty or an existing file", check=_file, launch=True)
_SHARE = Rule((-1.0, 1.0), constraints="0 to 1, or -1", live=True, launch=True)


@_table
class General:
    """Cameras and models."""

    autostart: Annotated[bool, Rule(read_only=True)] = True
    """Configure and activate by itself at start; false leaves it to a lifecycle manager."""
    cameras: Annotated[
        list[str],
        Rule(
            constraints="at least one relative topic name, none twice", check=_cameras, launch=True
        ),
    ] = field(default_factory=lambda: ["camera"])
    """Names of the cameras: images are read from <camera>/image_raw, outputs published under
    ~/<camera>/."""
    image_transport: Annotated[str, Rule(choices=("raw", "compressed"), launch=True)] = "raw"
    """raw: <camera>/image_raw is read; compressed: <camera>/image_raw/compressed."""
    profile: Annotated[
        str, Rule(constraints="a name in profiles.yaml, or a path that ends in .yaml", launch=True)
    ] = DEFAULT_PROFILE
    """Models and settings to detect with: the name of a profile or the path of a YAML file."""
    models_dir: Annotated[
        str, Rule(constraints="empty or an existing directory", check=_directory)
    ] = ""
    """Directory with a profiles.yaml to use in place of the installed one; empty: installed."""
    device: Annotated[
        str, Rule(constraints="auto, cpu, cuda or cuda:N", check=_device, launch=True)
    ] = "auto"
    """Device the models run on; auto: CUDA where there is one."""
    offline: bool = False
    """Never fetch missing models from the network; configuring fails instead."""
    base_frame: Annotated[str, _FRAME] = "base_link"
    """The robot's base frame: x forward, y left, z up."""


@_table
class Thresholds:
    """Threshold and calibration."""

    threshold: Annotated[float, _SHARE] = UNSET
    """Heatmap value from which a pixel of the mask is an anomaly; -1: the profile's own."""
    calibration: Annotated[str, _FILE] = ""
    """Calibration file, as anomaly-detector calibrate writes it; empty: the profile's own, if it
    has one."""
    calibration_frames: Annotated[int, Rule((2, 100_000), live=True)] = 30
    """Frames of each camera that ~/calibrate takes as nominal."""
    calibration_output: Annotated[str, Rule(live=True)] = ""
    """File that ~/calibrate writes, to be given as calibration at the next start; empty:
    <node>_calibration.safetensors in $ROS_HOME or ~/.ros."""
    lessons: Annotated[str, Rule(launch=True)] = ""
    """File of lessons, as anomaly-detector teach and the node write it, in force from the start;
    ~/teach and clicks add to it, ~/undo_lesson takes back; empty: the profile's own, if it has one,
    else <node>_lessons.safetensors in $ROS_HOME or ~/.ros."""
    teach_seconds: Annotated[float, Rule((0.1, 600.0), live=True)] = 60.0
    """For how many seconds ~/teach takes frames as nominal."""
    teach_frames: Annotated[int, Rule((1, 600), live=True)] = 60
    """Most frames of each camera that ~/teach takes, spread over teach_seconds."""
    drift_window: Annotated[int, Rule((10, 3600))] = 60
    """Frames of each camera, at most one a second, that are compared with the nominal ones to tell
    whether the scene still is that of the calibration."""


@_table
class Images:
    """Images."""

    max_input_age: Annotated[float, Rule((0.0, 60.0), live=True)] = 1.0
    """Images older than this many seconds when their turn comes are dropped and counted; 0: none
    is. Age is the node's clock minus the header's stamp. Where the stamp cannot be of the node's
    clock (zero, in the future, or over 10 s and over twice this limit old on arrival, as in a bag
    replayed without simulated time) it is the time since arrival."""
    grey_range: Annotated[
        list[float],
        Rule(constraints="two numbers, the lower one first, or [0, 0]", check=_range, live=True),
    ] = field(default_factory=lambda: [0.0, 0.0])
    """Values of images of more than 8 bits (mono16, 16UC1, rgb16, bayer_*16, 32FC1, 16-bit PNG)
    that become 0 and 255; [0, 0]: the percentiles 0.5 and 99.5 of each image."""
    rectification: Annotated[str, Rule(choices=("auto", "raw", "rectified"), live=True)] = "auto"
    """Whether images are rectified already, so that P of camera_info counts and not K and D. auto:
    rectified where the topic's name, after remapping, has a part that begins with image_rect."""
    image_frame: Annotated[str, Rule(choices=("optical", "body"), live=True)] = "optical"
    """Axes of the images' frame. optical: x right, y down, z forward (REP 103); body: x forward,
    y left, z up. Obstacles are published in that frame."""
    depth_unit: Annotated[float, Rule((0.0, 1.0), live=True)] = 0.0
    """Metres that 1 stands for in depth images; 0: as REP 118 has it, 0.001 in 16UC1 and 1 in
    32FC1."""
    max_rate: Annotated[float, Rule((0.0, 100.0), live=True)] = 0.0
    """Most images per second and camera that are processed; 0: as many as the device manages."""
    batch_cameras: Annotated[bool, Rule(live=True)] = False
    """Process one image of every camera that has one waiting together, in one batch: more images
    per second on a GPU, each of them later."""
    skip_similar: Annotated[float, Rule((0.0, 255.0), live=True)] = 0.0
    """Images that hardly differ from the last one processed take over what was found there, at most
    10 in a row: the largest change of the mean grey value (0 to 255) of any of 64x36 cells that
    still counts as none; noise makes about 1, 4 is a start; 0: all are processed."""
    temporal_filter: Annotated[float, Rule((0.0, 10.0), live=True)] = 0.0
    """Time constant in seconds of an exponential average of the heatmaps of each camera, by their
    stamps; 0: off. It knows nothing of the camera's motion and smears while it moves."""
    watchdog_timeout: Annotated[float, Rule((0.0, 600.0), live=True)] = 60.0
    """Seconds that the models may work on one image, or one batch; then their thread is given up
    and another one started with fresh models; 0: any time."""
    jpeg_quality: Annotated[int, Rule((1, 100), live=True)] = 90
    """JPEG quality of overlay/compressed."""


@_table
class ObstacleParameters:
    """Obstacles; with the prefix ``obstacles.``"""

    source: Annotated[str, Rule(choices=("auto", "depth", "ground"))] = "auto"
    """Where distances come from. depth: <camera>/depth, registered to the image; ground: where an
    obstacle stands on flat ground, by camera_info and the camera's pose; auto: depth where a depth
    image matches, else ground."""
    max_range: Annotated[float, Rule((0.1, 200.0), live=True)] = 15.0
    """Points further from the camera than so many metres are left out."""
    voxel_size: Annotated[float, Rule((0.0, 2.0), live=True)] = 0.1
    """One point is kept in each cube of so many metres; 0: every pixel is a point."""
    min_pixels: Annotated[int, Rule((1, 1_000_000), live=True)] = 25
    """Connected anomalies of fewer pixels are no obstacles."""
    standing: Annotated[bool, Rule(live=True)] = True
    """Without depth, take anomalies for things that stand on the ground; false: for patches of the
    ground, such as puddles."""
    ground_z: Annotated[float, Rule((-10.0, 10.0))] = 0.0
    """Height of the ground in base_frame, metres; negative where that is above the ground."""
    depth_tolerance: Annotated[float, Rule((0.0, 1.0))] = 0.05
    """A depth image belongs to an image if their stamps differ by no more than so many seconds."""


@_table
class CostmapParameters:
    """The costmap; with the prefix ``costmap.``"""

    frame: Annotated[str, _FRAME] = "odom"
    """Frame of ~/costmap: one that does not move with the robot, known to TF. base_frame needs no
    TF, but then what was seen moves along with the robot."""
    size: Annotated[float, Rule((1.0, 200.0))] = 20.0
    """Edge of ~/costmap in metres."""
    resolution: Annotated[float, Rule((0.01, 10.0))] = 0.1
    """Edge of a cell of ~/costmap in metres."""
    decay: Annotated[float, Rule((0.0, 600.0))] = 10.0
    """Seconds in which evidence in ~/costmap loses half of its weight, and after which a cell that
    no camera sees any more is unknown again; 0: it is kept, so that silence shows nowhere."""
    max_height: Annotated[float, Rule((0.0, 10.0))] = 2.0
    """Points higher above the ground than so many metres do not count in ~/costmap."""


@_table
class OfCamera:
    """What each camera may have of its own, as ``<camera>.<name>``; see `camera_parameter`."""

    image_transport: Annotated[
        str, Rule(choices=("raw", "compressed"), constraints="empty, raw or compressed")
    ] = ""
    """This camera's image_transport; empty: the node's."""
    calibration: Annotated[str, _FILE] = ""
    """This camera's calibration file; empty: the node's."""
    threshold: Annotated[float, _SHARE] = UNSET
    """This camera's threshold; -1: the node's."""
    max_rate: Annotated[float, Rule((-1.0, 100.0), constraints="0 or more, or -1", live=True)] = (
        UNSET
    )
    """This camera's max_rate; 0: no limit; -1: the node's."""
    rectification: Annotated[
        str,
        Rule(
            choices=("auto", "raw", "rectified"),
            constraints="empty, auto, raw or rectified",
            live=True,
        ),
    ] = ""
    """This camera's rectification; empty: the node's."""
    image_frame: Annotated[
        str,
        Rule(choices=("optical", "body"), constraints="empty, optical or body", live=True),
    ] = ""
    """This camera's image_frame; empty: the node's."""
    depth_unit: Annotated[float, Rule((-1.0, 1.0), constraints="0 or more, or -1", live=True)] = (
        UNSET
    )
    """This camera's depth_unit; 0: REP 118; -1: the node's."""
    height: Annotated[float, Rule((0.0, 10.0), live=True)] = 0.0
    """Height of the camera above base_frame's origin, metres, for obstacles without TF; 0: the
    camera's pose is that of TF."""
    roll: Annotated[float, Rule((-3.2, 3.2), live=True)] = 0.0
    """Roll of the camera about the robot's forward axis, radians; counts with height."""
    pitch: Annotated[float, Rule((-3.2, 3.2), live=True)] = 0.0
    """Pitch of the camera, radians, positive downwards; counts with height."""
    extrinsics: Annotated[
        list[float],
        Rule(constraints="a rotation and a translation, or 16 zeros", check=_extrinsics, live=True),
    ] = field(default_factory=lambda: [0.0] * 16)
    """Pose of the camera, base_frame <- optical frame, as a 4x4 matrix row by row; goes before
    height, roll and pitch; all zero: not given."""


def _specs(table: type, prefix: str = "") -> tuple[Spec, ...]:
    found: dict[str, FieldInfo] = table.__pydantic_fields__  # type: ignore[attr-defined]
    return tuple(
        Spec(
            name=prefix + name,
            default=each.get_default(call_default_factory=True),
            text=" ".join((each.description or "").split()),
            **vars(next((rule for rule in each.metadata if isinstance(rule, Rule)), Rule())),
        )
        for name, each in found.items()
    )


SECTIONS: dict[str, tuple[Spec, ...]] = {
    "Cameras and models": _specs(General),
    "Threshold and calibration": _specs(Thresholds),
    "Images": _specs(Images),
    "Obstacles": _specs(ObstacleParameters, "obstacles."),
    "Costmap": _specs(CostmapParameters, "costmap."),
}
SPECS: tuple[Spec, ...] = tuple(spec for section in SECTIONS.values() for spec in section)
BY_NAME: dict[str, Spec] = {spec.name: spec for spec in SPECS}

CAMERA_SPECS: tuple[Spec, ...] = _specs(OfCamera)
CAMERA_BY_NAME: dict[str, Spec] = {spec.name: spec for spec in CAMERA_SPECS}
OVERRIDES: tuple[Spec, ...] = tuple(spec for spec in CAMERA_SPECS if spec.name in BY_NAME)
"""What a camera may have of its own; each default stands for the node's parameter of that name."""
POSES: tuple[Spec, ...] = tuple(spec for spec in CAMERA_SPECS if spec.name not in BY_NAME)
"""Where a camera is."""


def camera_parameter(camera: str, name: str) -> str:
    """The full name of a camera's own parameter; ``/`` in a camera's name becomes ``.``.

    >>> camera_parameter("rear/left", "max_rate")
    'rear.left.max_rate'
    """
    return f"{camera.replace('/', '.')}.{name}"


def camera_specs(cameras: Sequence[str]) -> dict[str, Spec]:
    """What each camera may have of its own, by full name."""
    return {camera_parameter(c, spec.name): spec for c in cameras for spec in CAMERA_SPECS}


# -- what is possible ------------------------------------------------------------------------------

_TYPE_NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a number with a point",
    str: "text",
}


def problem(name: str, spec: Spec, value: Any) -> str | None:
    """Why a value cannot be that of the parameter ``name``, in one line; None if it can."""
    if type(spec.default) in _TYPE_NAMES:
        if type(value) is not type(spec.default):
            return f"{name} must be {_TYPE_NAMES[type(spec.default)]}, not {value!r}"
        if value == spec.default:
            return None
    if spec.bounds:
        # Written so that NaN, which compares false with everything, is refused.
        if not spec.bounds[0] <= value <= spec.bounds[1]:
            return f"{name} must be within {list(spec.bounds)}, not {value}"
        if value < 0 and spec.constraints:
            return f"{name} must be {spec.constraints}, not {value}"
    if spec.choices and value not in spec.choices:
        return f"{name} must be one of {', '.join(spec.choices)}, not '{value}'"
    wrong = spec.check(value) if spec.check else None
    return f"{name}{wrong}" if wrong else None


def as_declared(spec: Spec, value: Any) -> Any:
    """A value with integers taken for numbers where the parameter is one, or a list of them.

    >>> as_declared(BY_NAME["threshold"], 1), as_declared(BY_NAME["jpeg_quality"], 80)
    (1.0, 80)
    """
    if isinstance(spec.default, float) and type(value) is int:
        return float(value)
    of_numbers = isinstance(spec.default, list) and isinstance(spec.default[0], float)
    is_list = of_numbers and isinstance(value, (list, tuple, array)) and len(value) > 0
    if is_list and all(type(each) is int for each in value):
        return [float(each) for each in value]
    return value


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
        reason = problem(name, known[name], value)
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


# -- in a node -------------------------------------------------------------------------------------


def descriptor(name: str, spec: Spec) -> ParameterDescriptor:
    """The parameter's descriptor for rclpy, under its full name."""
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    made = ParameterDescriptor(
        name=name,
        description=f"{spec.text} Settable {spec.when}.",
        additional_constraints=spec.possible,
        read_only=spec.read_only,
    )
    if spec.bounds and isinstance(spec.default, int):
        first, last = map(int, spec.bounds)
        made.integer_range = [IntegerRange(from_value=first, to_value=last, step=1)]
    elif spec.bounds:
        least, largest = spec.bounds
        made.floating_point_range = [FloatingPointRange(from_value=least, to_value=largest)]
    return made


Settings = TypeVar("Settings")


class Parameters:
    """The parameters of a node, declared with their descriptors.

    Args:
        node: the node.

    Raises:
        UserError: a value given at start is of the wrong type, out of range or impossible.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        # What was given at start; rclpy has no accessor for it.
        self._given: dict[str, Any] = getattr(node, "_parameter_overrides", {})
        self._of_cameras: set[str] = set()
        for name, spec in BY_NAME.items():
            self._declare(name, spec)
        self.declare_cameras()
        if hasattr(node, "add_pre_set_parameters_callback"):  # not in Humble
            node.add_pre_set_parameters_callback(self._as_declared)

    def unknown(self) -> list[str]:
        """What was given at start that no parameter has the name of, in one line each."""
        known = {*BY_NAME, *self._of_cameras}
        return unknown_parameters(self._undeclared(qos=False), known)

    def unknown_qos(self) -> list[str]:
        """As `unknown`, of ``qos_overrides``; to be asked once all topics are made."""
        known = self._node.get_parameters_by_prefix(QOS_OVERRIDES.rstrip("."))
        return unknown_parameters(self._undeclared(qos=True), (QOS_OVERRIDES + n for n in known))

    def _undeclared(self, qos: bool) -> list[str]:
        return [
            name
            for name in self._given
            if name.startswith(QOS_OVERRIDES) == qos and not self._node.has_parameter(name)
        ]

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
        if name in BY_NAME and value == CAMERA_BY_NAME[name].default:
            return self[name]
        return value

    def settings(self, kind: type[Settings], group: str, **more: Any) -> Settings:
        """A dataclass of the parameters ``<group>.<field>``, but for those given here."""
        names = {field.name for field in fields(kind)} - set(more)  # type: ignore[arg-type]
        return kind(**{name: self[f"{group}.{name}"] for name in names}, **more)

    def set(self, values: Mapping[str, Any]) -> None:
        """Sets parameters, as a service call does."""
        from rclpy.parameter import Parameter

        self._node.set_parameters([Parameter(name, value=value) for name, value in values.items()])

    def current(self) -> dict[str, Any]:
        """All values by full name."""
        return {name: self[name] for name in (*BY_NAME, *self._of_cameras)}

    def _as_declared(self, changed: list[Parameter]) -> list[Parameter]:
        from rclpy.parameter import Parameter

        known = {**BY_NAME, **camera_specs(self["cameras"])}
        return [
            Parameter(each.name, value=as_declared(known[each.name], each.value))
            if each.name in known
            else each
            for each in changed
        ]

    def _declare(self, name: str, spec: Spec) -> None:
        from rclpy.exceptions import (
            InvalidParameterTypeException,
            InvalidParameterValueException,
        )

        made = descriptor(name, spec)
        given = self._given.get(name)
        number = as_declared(spec, given.value) if given else None
        whole = given is not None and number is not given.value
        try:
            value = self._node.declare_parameter(
                name, number if whole else spec.default, made, ignore_override=whole
            ).value
        except (InvalidParameterTypeException, InvalidParameterValueException) as error:
            raise UserError(f"parameter {name}: {one_line(error)}") from error
        reason = problem(name, spec, value)
        if reason:
            if not spec.read_only:
                self._node.undeclare_parameter(name)
            raise UserError(f"parameter {reason}")
