"""Boxes around anomalies, and the vision_msgs messages made of them."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly_detector_ros.imaging.boxes import Box, boxes
from anomaly_detector_ros.imaging.rendering import ANOMALY, CLASSES, render

SIZE = (100, 200)


def scene(*squares: tuple[int, int, int, int, float]) -> tuple[np.ndarray, np.ndarray]:
    """Heatmap and mask with rectangles of (left, top, width, height, value) on 0.1."""
    heatmap, mask = np.full(SIZE, 0.1, np.float32), np.zeros(SIZE, bool)
    for left, top, width, height, value in squares:
        where = np.s_[top : top + height, left : left + width]
        heatmap[where], mask[where] = value, True
    return heatmap, mask


def test_one_box_for_each_component_highest_score_first():
    found = boxes(*scene((10, 20, 30, 40, 0.8), (150, 0, 50, 100, 0.9)))
    assert [(b.left, b.top, b.width, b.height) for b in found] == [
        (150, 0, 50, 100),
        (10, 20, 30, 40),
    ]
    assert [b.score for b in found] == pytest.approx([0.9, 0.8])


def test_the_score_is_the_mean_over_the_components_pixels_alone():
    heatmap, mask = scene((10, 10, 10, 10, 0.6))
    heatmap[10:15, 10:20] = 1.0
    mask[10:12, 10:12] = False  # inside the box, not of the component
    (box,) = boxes(heatmap, mask)
    assert box.score == pytest.approx((46 * 1.0 + 50 * 0.6) / 96)


def test_components_that_touch_at_a_corner_are_one():
    (box,) = boxes(*scene((10, 10, 20, 20, 0.7), (30, 30, 20, 20, 0.7)))
    assert (box.left, box.top, box.width, box.height) == (10, 10, 40, 40)


@pytest.mark.parametrize(("width", "count"), [(3, 0), (4, 1)])
def test_specks_are_left_out(width: int, count: int):
    assert len(boxes(*scene((50, 50, width, 1, 0.9)))) == count  # 4 of 20,000 pixels is the least


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_count_as_zero(value: float):
    heatmap, mask = scene((10, 10, 10, 10, 0.5))
    heatmap[10:15, 10:20] = value
    assert boxes(heatmap, mask)[0].score == pytest.approx(0.25)


def test_an_empty_and_a_full_mask():
    assert boxes(*scene()) == []
    assert boxes(*scene((0, 0, 200, 100, 1.0))) == [Box(0, 0, 200, 100, 1.0)]


def test_classes_are_the_masks_values():
    """Every value that the topic `mask` can have has a name."""

    class Found:
        mask = np.array([[False, True]])

    assert set(np.unique(render("mask", Found.mask, Found()))) == set(CLASSES)
    assert CLASSES[ANOMALY] == "anomaly"


def header() -> object:
    from builtin_interfaces.msg import Time
    from std_msgs.msg import Header

    return Header(stamp=Time(sec=3, nanosec=4), frame_id="camera_optical_frame")


@pytest.fixture
def vision_msgs() -> None:
    pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not installed")


@pytest.mark.usefixtures("vision_msgs")
def test_detections_message():
    from anomaly_detector_ros.ros.publishers import detections_message

    message = detections_message(header(), [Box(10, 20, 30, 41, 0.75)])
    assert message.header == header()
    (detection,) = message.detections
    assert detection.header == header()
    assert (detection.bbox.center.position.x, detection.bbox.center.position.y) == (25.0, 40.5)
    assert detection.bbox.center.theta == 0.0
    assert (detection.bbox.size_x, detection.bbox.size_y) == (30.0, 41.0)
    (result,) = detection.results
    assert (result.hypothesis.class_id, result.hypothesis.score) == (str(ANOMALY), 0.75)


@pytest.mark.usefixtures("vision_msgs")
def test_no_detection_is_a_message_too():
    from anomaly_detector_ros.ros.publishers import detections_message

    assert list(detections_message(header(), []).detections) == []


@pytest.mark.usefixtures("vision_msgs")
def test_label_info_message():
    from anomaly_detector_ros.ros.publishers import label_info_message

    message = label_info_message(header(), 1)
    assert message.header == header()
    assert {c.class_id: c.class_name for c in message.class_map} == CLASSES
    assert message.threshold == 1.0


def test_messages_are_made_where_they_can_be_imported():
    pytest.importorskip("rclpy", reason="rclpy is not installed")
    from anomaly_detector_ros.ros.publishers import vision_messages

    try:
        import vision_msgs.msg  # noqa: F401
    except ImportError:
        assert not vision_messages()
    else:
        assert vision_messages()
