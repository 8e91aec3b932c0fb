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
from anomaly_detector_ros.ros import publishers
from anomaly_detector_ros.ros.camera import names_rectified
from anomaly_detector_ros.ros.output import Output
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
    """In place of `Topics` and a publisher: somebody listens to one topic."""

    def __init__(self, listened: str = "", listeners: int = 0) -> None:
        self.listened, self.sent, self.listeners = listened, [], listeners

    def advertise(self, message_type: type, topic: str, qos: Any = None) -> Output:
        publisher = Recorder(listeners=topic.endswith(self.listened))
        publisher.sent = self.sent
        return Output(publisher)

    def missing(self, topic: str, why: str) -> Output:
        return Output(None, missing=why, count=lambda: int(topic.endswith(self.listened)))

    def get_subscription_count(self) -> int:
        return int(self.listeners)

    def publish(self, message: Any) -> None:
        self.sent.append(message)


def test_the_last_camera_info_is_sent_under_the_images_header_and_stays_as_it_is():
    topics = Recorder("/camera_info")
    outputs = Outputs(topics, "camera")
    info = CameraInfo(header=Header(stamp=Time(sec=1), frame_id="driver"), height=4, width=6)
    for second in (5, 6):
        header = Header(stamp=Time(sec=second), frame_id="optical")
        outputs.publish(header, IMAGE, DETECTION, info, 90)
    assert str(outputs.outputs["camera_info"].state()) == "fine"
    assert [(m.header.stamp.sec, m.header.frame_id) for m in topics.sent] == [
        (5, "optical"),
        (6, "optical"),
    ]
    assert (info.header.stamp.sec, info.header.frame_id) == (1, "driver")


def test_a_camera_info_of_a_scaled_image_is_scaled_and_stays_as_it_is():
    topics = Recorder("/camera_info")
    k = [6.0, 0.0, 6.0, 0.0, 8.0, 4.0, 0.0, 0.0, 1.0]
    info = CameraInfo(height=8, width=12, k=k)
    Outputs(topics, "camera").publish(Header(), IMAGE, DETECTION, info, 90)
    (sent,) = topics.sent
    assert (sent.height, sent.width) == (4, 6)
    assert list(sent.k) == [3.0, 0.0, 3.0, 0.0, 4.0, 2.0, 0.0, 0.0, 1.0]
    assert (info.height, info.width, list(info.k)) == (8, 12, k)


@pytest.mark.parametrize(
    ("info", "why"),
    [
        (CameraInfo(height=8, width=6), "camera_info is for 6x8, the image is 6x4"),
        (None, "no message has come on camera_info"),
    ],
)
def test_a_camera_info_that_cannot_be_is_told_and_not_sent(info: CameraInfo | None, why: str):
    topics = Recorder("/camera_info")
    outputs = Outputs(topics, "camera")
    outputs.publish(Header(), IMAGE, DETECTION, info, 90)
    assert why in outputs.outputs["camera_info"].state().problem
    assert topics.sent == []


def test_detections_without_their_messages_say_so_to_who_waits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(publishers, "vision_messages", lambda: False)
    outputs = Outputs(Recorder("/detections"), "camera")
    outputs.publish(Header(), IMAGE, DETECTION, None, 90)
    assert "vision_msgs is not installed" in outputs.outputs["detections"].state().problem
    assert str(outputs.labels.state()) == "nobody listens"


@pytest.mark.parametrize(
    ("topic", "rectified"),
    [
        ("/camera/image_rect", True),
        ("/camera/image_rect_color/compressed", True),
        ("/camera/image_raw", False),
        ("/rectangle/image_raw", False),
    ],
)
def test_a_topic_tells_whether_its_images_are_rectified(topic: str, rectified: bool):
    assert names_rectified(topic) == rectified
