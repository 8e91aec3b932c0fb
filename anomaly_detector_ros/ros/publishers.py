"""A camera's outputs on the ROS graph: rendered and sent where somebody listens.

Messages are made by hand: sensor_msgs_py, cv_bridge and vision_msgs are not among the Python wheels
of ROS. Detections are left out where vision_msgs is missing.
"""

from __future__ import annotations

import array
import importlib.util
import sys
from collections.abc import Iterable
from copy import copy
from typing import TYPE_CHECKING

import numpy as np
from builtin_interfaces.msg import Duration, Time
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.imaging.boxes import Box, boxes
from anomaly_detector_ros.imaging.messages import image_fields
from anomaly_detector_ros.imaging.rendering import (
    ANOMALY,
    CLASSES,
    IMAGE_OUTPUTS,
    JPEG_FORMAT,
    encode_jpeg,
    render,
)
from anomaly_detector_ros.mapping.camera_model import fitted
from anomaly_detector_ros.ros.qos import LATCHED, Topics

if TYPE_CHECKING:
    from vision_msgs.msg import Detection2D, Detection2DArray, LabelInfo

    from anomaly_detector_ros.detection import Detection
    from anomaly_detector_ros.mapping.obstacles import Thing

MARKER_EDGE, LABEL_HEIGHT = 0.05, 0.3
"""Metres: what a flat box is as thick as, and the height of its label's letters."""
MARKER_LIFETIME = Duration(sec=3)
"""After which a box vanishes where no image follows: an old one would be taken for a new one."""
CLOUD_FIELDS: tuple[str, ...] = ("x", "y", "z", "intensity")
"""Names of a point's float32 fields, in their order."""


class Outputs:
    """The images of one camera, and what else is made of a detection alone.

    Attributes:
        outputs: those made of images, by name.
        labels: what the mask's values stand for.

    Args:
        topics: makes the publishers.
        camera: the camera's name; topics are ``~/<camera>/<output>``.
    """

    def __init__(self, topics: Topics, camera: str) -> None:
        types: dict[str, type] = dict.fromkeys(IMAGE_OUTPUTS, Image)
        types |= {"overlay/compressed": CompressedImage, "camera_info": CameraInfo}
        self.outputs = {
            output: topics.advertise(message_type, f"~/{camera}/{output}")
            for output, message_type in types.items()
        }
        detections, labels = f"~/{camera}/detections", f"~/{camera}/label_info"
        if vision_messages():
            from vision_msgs.msg import Detection2DArray, LabelInfo

            self.outputs["detections"] = topics.advertise(Detection2DArray, detections)
            self.labels = topics.advertise(LabelInfo, labels, LATCHED)
        else:
            why = "vision_msgs is not installed where the node runs"
            self.outputs["detections"] = topics.missing(detections, why)
            self.labels = topics.missing(labels, why)

    def publish(
        self,
        header: Header,
        image: np.ndarray,
        detection: Detection,
        info: CameraInfo | None,
        jpeg_quality: int,
    ) -> None:
        """Publishes what somebody listens to, or tells its output why it cannot.

        Nothing is rendered for nobody.

        Args:
            header: of the input, and of all outputs.
            image: the input, uint8 RGB (H, W, 3).
            detection: what was found in it.
            info: the last message on the camera's ``camera_info``; stays as it is.
            jpeg_quality: of the overlay, 1 to 100.
        """
        wanted = {name: output for name, output in self.outputs.items() if output.wanted}
        for name, spec in IMAGE_OUTPUTS.items():
            plain, compressed = wanted.get(name), wanted.get(f"{name}/compressed")
            if not (plain or compressed):
                continue
            rendered = render(name, image, detection)
            if plain:
                plain.send(image_message(header, rendered, spec.encoding))
            if compressed:
                compressed.send(jpeg_message(header, rendered, jpeg_quality))
        if "detections" in wanted:
            found = boxes(detection.heatmap, detection.mask)
            wanted["detections"].send(detections_message(header, found))
        if "camera_info" in wanted:
            try:
                wanted["camera_info"].send(_own_info(info, header, image.shape[:2]))
            except UserError as error:
                wanted["camera_info"].cannot(str(error))

    def publish_labels(self, stamp: Time, threshold: float) -> None:
        """Publishes what the mask's values stand for, where vision_msgs is installed."""
        if vision_messages():
            self.labels.send(label_info_message(Header(stamp=stamp), threshold))


def _own_info(info: CameraInfo | None, header: Header, size: tuple[int, ...]) -> CameraInfo:
    """A camera's calibration as that of the outputs: of the image's header and size."""
    if info is None:
        raise UserError("no message has come on camera_info: publish the camera's calibration")
    changes = fitted(info, size)
    own = copy(info)
    own.header = header
    for name, value in changes.items():
        setattr(own, name, value)
    return own


def octets(data: bytes) -> array.array[int]:
    """Bytes for a message: rclpy takes them as they are, all else it checks one by one."""
    return array.array("B", data)


def image_message(header: Header, pixels: np.ndarray, encoding: str) -> Image:
    """A `sensor_msgs/Image` of an array."""
    fields = image_fields(pixels, encoding)
    fields["data"] = octets(fields["data"])
    return Image(header=header, **fields)


def jpeg_message(header: Header, picture: np.ndarray, quality: int) -> CompressedImage:
    """A `sensor_msgs/CompressedImage` of an RGB picture, as image_transport publishes them."""
    data = octets(encode_jpeg(picture, quality))
    return CompressedImage(header=header, format=JPEG_FORMAT, data=data)


def cloud_message(header: Header, points: np.ndarray) -> PointCloud2:
    """A `sensor_msgs/PointCloud2` with float32 x y z intensity.

    Args:
        header: its header.
        points: float32 (N, 4), a list of points, or (H, W, 4), an organised cloud of an image's
            size; NaN where an organised cloud has no point.
    """
    points = np.ascontiguousarray(points, np.float32)
    organised = points.ndim == 3
    height, width = points.shape[:2] if organised else (1, len(points))
    size = points.itemsize
    return PointCloud2(
        header=header,
        height=height,
        width=width,
        fields=[
            PointField(name=name, offset=size * index, datatype=PointField.FLOAT32, count=1)
            for index, name in enumerate(CLOUD_FIELDS)
        ],
        is_bigendian=sys.byteorder == "big",
        point_step=size * len(CLOUD_FIELDS),
        row_step=size * len(CLOUD_FIELDS) * width,
        is_dense=not organised,
        data=octets(points.tobytes()),
    )


def markers_message(
    header: Header, found: Iterable[Thing], up: tuple[float, float, float]
) -> MarkerArray:
    """A `visualization_msgs/MarkerArray` that replaces the last: boxes, with score and distance.

    Args:
        header: of the image.
        found: in the header's frame.
        up: where a label is of its box, in that frame.
    """
    markers = [Marker(header=header, action=Marker.DELETEALL)]
    for number, thing in enumerate(found):
        size = np.maximum(thing.size, MARKER_EDGE)
        box, label = (
            Marker(header=header, ns=name, id=number, type=kind, lifetime=MARKER_LIFETIME)
            for name, kind in (("anomalies", Marker.CUBE), ("labels", Marker.TEXT_VIEW_FACING))
        )
        above = thing.centre + np.asarray(up) * (np.abs(np.asarray(up)) @ size / 2 + LABEL_HEIGHT)
        for marker, place in ((box, thing.centre), (label, above)):
            p = marker.pose.position
            p.x, p.y, p.z = (float(value) for value in place)
            marker.pose.orientation.w = 1.0
        box.scale.x, box.scale.y, box.scale.z = (float(edge) for edge in size)
        box.color = ColorRGBA(r=0.95, g=0.25, b=0.1, a=0.35)
        label.scale.z = LABEL_HEIGHT
        label.color = ColorRGBA(r=1.0, g=1.0, b=1.0, a=1.0)
        label.text = f"{thing.score:.2f}  {thing.distance:.1f} m"
        markers += [box, label]
    return MarkerArray(markers=markers)


def vision_messages() -> bool:
    """Whether vision_msgs is installed."""
    return importlib.util.find_spec("vision_msgs") is not None


def detections_message(header: Header, found: Iterable[Box]) -> Detection2DArray:
    """The boxes as a `vision_msgs/Detection2DArray` under the image's header."""
    from vision_msgs.msg import Detection2DArray

    return Detection2DArray(header=header, detections=[_detection(header, box) for box in found])


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


def label_info_message(header: Header, threshold: float) -> LabelInfo:
    """What the mask's values stand for and the threshold that made it, `vision_msgs/LabelInfo`."""
    from vision_msgs.msg import LabelInfo, VisionClass

    classes = [VisionClass(class_id=value, class_name=name) for value, name in CLASSES.items()]
    return LabelInfo(header=header, class_map=classes, threshold=float(threshold))
