"""Anomalies as boxes, and the messages of vision_msgs that carry them where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from std_msgs.msg import Header
    from vision_msgs.msg import Detection2D, Detection2DArray, LabelInfo

CLASSES = {0: "nominal", 255: "anomaly"}
"""Values of the topic ``mask`` and what they stand for."""
ANOMALY = 255
SMALLEST_SHARE = 2e-4
"""Of the image's pixels; what is smaller is a speck, not an object."""


@dataclass(frozen=True)
class Box:
    """An anomaly's upright bounding box.

    Attributes:
        left, top: its first column and row.
        width, height: in pixels.
        score: mean of the heatmap over the anomaly's pixels, in [0, 1].
    """

    left: int
    top: int
    width: int
    height: int
    score: float


def boxes(heatmap: np.ndarray, mask: np.ndarray) -> list[Box]:
    """A box around each 8-connected component of the mask, highest score first.

    Args:
        heatmap: float (H, W) in [0, 1]; values that are not finite count as 0.
        mask: bool (H, W).

    Components under :data:`SMALLEST_SHARE` of the image are left out.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=8
    )
    heat = np.clip(np.nan_to_num(heatmap, posinf=0.0, neginf=0.0), 0.0, 1.0)
    totals = np.bincount(labels.ravel(), heat.ravel(), minlength=count)
    found = []
    for label in range(1, count):  # 0 is what the mask leaves out
        left, top, width, height, area = map(int, stats[label])
        if area >= SMALLEST_SHARE * mask.size:
            found.append(Box(left, top, width, height, min(float(totals[label]) / area, 1.0)))
    return sorted(found, key=lambda box: -box.score)


def available() -> bool:
    """Whether vision_msgs is installed."""
    return importlib.util.find_spec("vision_msgs") is not None


def detections_message(header: Header, found: Iterable[Box]) -> Detection2DArray:
    """The boxes as a `vision_msgs/Detection2DArray` under the image's header."""
    from vision_msgs.msg import Detection2DArray

    return Detection2DArray(header=header, detections=[_detection(header, box) for box in found])


def label_info_message(header: Header, threshold: float) -> LabelInfo:
    """What the mask's values stand for and the threshold that made it, `vision_msgs/LabelInfo`."""
    from vision_msgs.msg import LabelInfo, VisionClass

    classes = [VisionClass(class_id=value, class_name=name) for value, name in CLASSES.items()]
    return LabelInfo(header=header, class_map=classes, threshold=float(threshold))


def _detection(header: Header, box: Box) -> Detection2D:
    from vision_msgs.msg import Detection2D, ObjectHypothesisWithPose

    result = ObjectHypothesisWithPose()
    result.hypothesis.class_id = str(ANOMALY)  # label_info has its name
    result.hypothesis.score = box.score
    message = Detection2D(header=header, results=[result])
    # The edges of a box lie between pixels, as those of OpenCV's rectangles.
    message.bbox.center.position.x = box.left + box.width / 2
    message.bbox.center.position.y = box.top + box.height / 2
    message.bbox.size_x = float(box.width)
    message.bbox.size_y = float(box.height)
    return message
