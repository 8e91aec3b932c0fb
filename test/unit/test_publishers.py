"""A camera's outputs, sent where somebody listens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from builtin_interfaces.msg import Time
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from anomaly_detector_ros.detection import Detection
from anomaly_detector_ros.ros.publishers import Outputs

IMAGE = np.zeros((4, 6, 3), np.uint8)
DETECTION = Detection(
    np.zeros((4, 6), np.float32),
    np.zeros((4, 6), bool),
    np.zeros((4, 6), np.int32),
    IMAGE,
    0.0,
    {},
    np.zeros((4, 6), np.float32),
    np.zeros((4, 6), np.float32),
    False,
)


class Recorder:
    """In place of `Topics` and `Output`: somebody listens to one topic."""

    def __init__(self, listened: str = "") -> None:
        self.listened, self.sent, self.wanted = listened, [], False

    def advertise(self, message_type: type, topic: str, qos: Any = None) -> Recorder:
        output = Recorder()
        output.wanted, output.sent = topic.endswith(self.listened), self.sent
        return output

    def send(self, message: Any) -> None:
        self.sent.append(message)


def test_the_last_camera_info_is_sent_under_the_images_header_and_stays_as_it_is():
    topics = Recorder("/camera_info")
    outputs = Outputs(topics, "camera")
    info = CameraInfo(header=Header(stamp=Time(sec=1), frame_id="driver"), height=4, width=6)
    for second in (5, 6):
        header = Header(stamp=Time(sec=second), frame_id="optical")
        assert outputs.publish(header, IMAGE, DETECTION, info, 90) == ""
    assert [(m.header.stamp.sec, m.header.frame_id) for m in topics.sent] == [
        (5, "optical"),
        (6, "optical"),
    ]
    assert (info.header.stamp.sec, info.header.frame_id) == (1, "driver")


def test_a_camera_info_of_a_scaled_image_is_scaled_and_stays_as_it_is():
    topics = Recorder("/camera_info")
    k = [6.0, 0.0, 6.0, 0.0, 8.0, 4.0, 0.0, 0.0, 1.0]
    info = CameraInfo(height=8, width=12, k=k)
    assert Outputs(topics, "camera").publish(Header(), IMAGE, DETECTION, info, 90) == ""
    (sent,) = topics.sent
    assert (sent.height, sent.width) == (4, 6)
    assert list(sent.k) == [3.0, 0.0, 3.0, 0.0, 4.0, 2.0, 0.0, 0.0, 1.0]
    assert (info.height, info.width, list(info.k)) == (8, 12, k)


def test_a_camera_info_of_another_size_is_told_and_not_sent():
    topics = Recorder("/camera_info")
    info = CameraInfo(height=8, width=6)
    trouble = Outputs(topics, "camera").publish(Header(), IMAGE, DETECTION, info, 90)
    assert "camera_info is for 6x8, the image is 6x4" in trouble
    assert topics.sent == []
