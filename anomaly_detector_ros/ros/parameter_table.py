"""The table of the node's parameters: names, defaults, descriptions and ranges."""

from __future__ import annotations

from anomaly_detector_ros.ros.detection_parameters import DETECTION, OVERRIDES
from anomaly_detector_ros.ros.mapping_parameters import MAPPING, POSES
from anomaly_detector_ros.ros.parameter_spec import Spec

SPECS: tuple[Spec, ...] = (*DETECTION, *MAPPING)
BY_NAME: dict[str, Spec] = {spec.name: spec for spec in SPECS}

CAMERA_SPECS: tuple[Spec, ...] = (*OVERRIDES, *POSES)
"""What each camera may have of its own, as ``<camera>.<name>``; see `camera_parameter`."""
CAMERA_BY_NAME: dict[str, Spec] = {spec.name: spec for spec in CAMERA_SPECS}


def camera_parameter(camera: str, name: str) -> str:
    """The full name of a camera's own parameter; ``/`` in a camera's name becomes ``.``.

    >>> camera_parameter("rear/left", "max_rate")
    'rear.left.max_rate'
    """
    return f"{camera.replace('/', '.')}.{name}"
