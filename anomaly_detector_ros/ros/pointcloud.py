"""Point clouds as messages."""

from __future__ import annotations

import array
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from sensor_msgs.msg import PointCloud2, PointField

if TYPE_CHECKING:
    from std_msgs.msg import Header

FIELDS: tuple[str, ...] = ("x", "y", "z", "intensity")
"""Names of a point's float32 fields, in their order."""


def cloud_fields(points: np.ndarray) -> dict[str, Any]:
    """Fields of a `sensor_msgs/PointCloud2` but for header and point fields; `data` is bytes.

    Args:
        points: float32 (N, 4), a list of points, or (H, W, 4), an organised cloud of an image's
            size; NaN where an organised cloud has no point.
    """
    points = np.ascontiguousarray(points, np.float32)
    organised = points.ndim == 3
    height, width = points.shape[:2] if organised else (1, len(points))
    return {
        "height": height,
        "width": width,
        "is_bigendian": sys.byteorder == "big",
        "point_step": points.itemsize * len(FIELDS),
        "row_step": points.itemsize * len(FIELDS) * width,
        "is_dense": not organised,
        "data": points.tobytes(),
    }


def cloud_message(header: Header, points: np.ndarray) -> PointCloud2:
    """A `sensor_msgs/PointCloud2` with float32 x y z intensity; see :func:`cloud_fields`."""
    fields = cloud_fields(points)
    # rclpy takes an array.array as it is; anything else it checks and copies byte by byte.
    fields["data"] = array.array("B", fields["data"])
    layout = [
        PointField(name=name, offset=4 * index, datatype=PointField.FLOAT32, count=1)
        for index, name in enumerate(FIELDS)
    ]
    return PointCloud2(header=header, fields=layout, **fields)
