"""A camera's outputs on the ROS graph: rendered and sent where somebody listens."""

from __future__ import annotations

import array
from typing import TYPE_CHECKING, Any

import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from anomaly_detector_ros.imaging.messages import image_fields, info_fits
from anomaly_detector_ros.imaging.rendering import IMAGE_OUTPUTS, JPEG_FORMAT, encode_jpeg, render
from anomaly_detector_ros.ros import vision
from anomaly_detector_ros.ros.qos import Warn, advertise, latched_qos

if TYPE_CHECKING:
    from rclpy.lifecycle import LifecycleNode

    from anomaly_detector_ros.detection import Detection


class Outputs:
    """The publishers of one camera.

    Args:
        node: owns them.
        camera: the camera's name; topics are ``~/<camera>/<output>``.
        warn: hears of subscribers whose QoS does not match.
    """

    def __init__(self, node: LifecycleNode, camera: str, warn: Warn) -> None:
        self._node = node
        topics: dict[str, type] = dict.fromkeys(IMAGE_OUTPUTS, Image)
        topics |= {"overlay/compressed": CompressedImage, "camera_info": CameraInfo}
        self._publishers: dict[str, Any] = {}
        for output, message_type in topics.items():
            topic = f"~/{camera}/{output}"
            self._publishers[output] = advertise(node, message_type, topic, warn)
        if vision.available():
            from vision_msgs.msg import Detection2DArray, LabelInfo

            self._publishers |= {
                "detections": advertise(node, Detection2DArray, f"~/{camera}/detections", warn),
                "label_info": advertise(
                    node, LabelInfo, f"~/{camera}/label_info", warn, latched_qos()
                ),
            }

    def close(self) -> None:
        """Removes the publishers."""
        publishers, self._publishers = self._publishers, {}
        for publisher in publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)

    def publish(
        self,
        header: Header,
        image: np.ndarray,
        detection: Detection,
        info: CameraInfo | None,
        jpeg_quality: int,
    ) -> str:
        """Publishes what somebody listens to; it is rendered for nobody else.

        Args:
            header: of the input, and of all outputs.
            image: the input, uint8 RGB (H, W, 3).
            detection: what was found in it.
            info: the last message on the camera's ``camera_info``.
            jpeg_quality: of the overlay, 1 to 100.

        Returns:
            What somebody listens to and could not get, in one line; else empty.
        """
        # A copy: the node may be cleaned up meanwhile.
        wanted = {
            output
            for output, publisher in dict(self._publishers).items()
            if publisher.get_subscription_count() > 0
        }
        for output, spec in IMAGE_OUTPUTS.items():
            compressed = f"{output}/compressed"
            if not wanted & {output, compressed}:
                continue
            rendered = render(output, image, detection)
            if output in wanted:
                self._send(output, image_message(header, rendered, spec.encoding))
            if compressed in wanted:
                self._send(compressed, jpeg_message(header, rendered, jpeg_quality))
        if "detections" in wanted:
            found = vision.boxes(detection.heatmap, detection.mask)
            self._send("detections", vision.detections_message(header, found))
        if "camera_info" not in wanted:
            return ""
        if info is None:
            return "no message on camera_info, so none is published"
        if not info_fits(info, image.shape[:2]):
            return (
                f"camera_info is for {info.width}x{info.height}, the image is "
                f"{image.shape[1]}x{image.shape[0]}: correct the camera driver's calibration"
            )
        info.header = header
        self._send("camera_info", info)
        return ""

    def publish_labels(self, stamp: Time, threshold: float) -> None:
        """Publishes what the mask's values stand for, where vision_msgs is installed."""
        if "label_info" in self._publishers:
            message = vision.label_info_message(Header(stamp=stamp), threshold)
            self._send("label_info", message)

    def _send(self, output: str, message: Any) -> None:
        publisher = self._publishers.get(output)
        if publisher is not None:
            publisher.publish(message)


def image_message(header: Header, pixels: np.ndarray, encoding: str) -> Image:
    """A `sensor_msgs/Image` of an array."""
    fields = image_fields(pixels, encoding)
    # rclpy takes an array.array as it is; anything else it checks and copies byte by byte.
    fields["data"] = array.array("B", fields["data"])
    return Image(header=header, **fields)


def jpeg_message(header: Header, picture: np.ndarray, quality: int) -> CompressedImage:
    """A `sensor_msgs/CompressedImage` of an RGB picture, as image_transport publishes them."""
    data = array.array("B", encode_jpeg(picture, quality))
    return CompressedImage(header=header, format=JPEG_FORMAT, data=data)
