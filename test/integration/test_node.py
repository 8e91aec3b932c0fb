"""The node's images and outputs in a live graph, with a real detector of random weights."""

from __future__ import annotations

import array
import time
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

import torch
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage
from support.node_client import image, picture
from support.ros_graph import Graph, values, with_stamp
from support.waiting import wait_until

from anomaly_detector_ros.imaging.messages import image_to_rgb
from anomaly_detector_ros.imaging.rendering import CLASSES, IMAGE_OUTPUTS


@pytest.fixture(scope="module")
def live(light_profile: str) -> Iterator[Graph]:
    """An active node, shared by the tests that leave it as they found it."""
    graph = Graph("live", profile=light_profile, device="cpu", max_input_age=5.0)
    wait_until(lambda: graph.state() == "active", "activation", timeout=120.0)
    yield graph
    graph.close()


def jpeg_pixels(data: Any) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def test_every_output_arrives_as_promised(live: Graph):
    collected = {name: live.listen_output(name) for name in IMAGE_OUTPUTS}
    jpegs = live.listen_output("overlay/compressed", CompressedImage)
    infos = live.listen_output("camera_info", CameraInfo)
    info = CameraInfo(height=48, width=64, distortion_model="plumb_bob", d=[0.1, 0, 0, 0, 0])
    info.k[0] = 321.0
    live.send_info(info)
    wait_until(lambda: live.node.session.cameras[0]._info is not None, "the camera_info")
    stamp = live.send(image())
    outputs = {name: with_stamp(messages, stamp) for name, messages in collected.items()}
    jpeg, out_info = with_stamp(jpegs, stamp), with_stamp(infos, stamp)
    for name, message in outputs.items():
        assert message.encoding == IMAGE_OUTPUTS[name].encoding
        assert (message.height, message.width) == (48, 64)
    for message in (*outputs.values(), jpeg, out_info):
        assert message.header.frame_id == "optical"
    heatmap, mask = values(outputs["heatmap"]), values(outputs["mask"])
    assert 0.0 <= heatmap.min() < heatmap.max() <= 1.0
    assert np.array_equal(mask, np.where(heatmap >= 0.3, 255, 0))
    assert np.array_equal(values(outputs["confidence"]), np.rint(heatmap * 255))
    assert not values(outputs["segments"]).any()  # the profile has no segmenter
    assert values(outputs["edited"]).std() > 1
    overlay = values(outputs["overlay"])[..., ::-1]
    expected = cv2.imencode(".jpg", overlay, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    assert np.array_equal(jpeg_pixels(jpeg.data), jpeg_pixels(expected))
    assert "jpeg" in jpeg.format
    assert (out_info.k[0], out_info.width, out_info.d[0]) == (321.0, 64, 0.1)


def test_other_encodings_and_sizes_follow_each_other(live: Graph):
    edited = live.listen_output("edited")
    pixels = picture(30, 41)
    stamp = live.send(image(pixels[..., ::-1], encoding="bgr8"))
    assert values(with_stamp(edited, stamp)).shape == (30, 41, 3)
    grey = np.ascontiguousarray(pixels[..., 0])
    padded = np.pad(grey, ((0, 0), (0, 7)))
    message = image(pixels, encoding="mono8", step=48, data=array.array("B", padded.tobytes()))
    assert np.array_equal(image_to_rgb(message)[..., 1], grey)
    assert values(with_stamp(edited, live.send(message))).shape == (30, 41, 3)


def test_outputs_without_subscribers_are_not_rendered(live: Graph, monkeypatch: pytest.MonkeyPatch):
    from anomaly_detector_ros.ros import publishers

    rendered: list[str] = []
    real = publishers.render

    def counting(name: str, *args: Any) -> np.ndarray:
        rendered.append(name)
        return real(name, *args)

    for subscription in list(live.client.subscriptions):
        if "/camera/" in subscription.topic_name:
            live.client.destroy_subscription(subscription)
    masks = live.listen_output("mask")

    def subscribers() -> int:
        topics = (f"{live.base}/camera/{name}" for name in IMAGE_OUTPUTS)
        return sum(map(live.client.count_subscribers, topics))

    wait_until(lambda: subscribers() == 1, "the subscribers to be gone")
    monkeypatch.setattr(publishers, "render", counting)
    with_stamp(masks, live.send(image()))
    assert rendered == ["mask"]


BAD_IMAGES = {
    "unknown encoding": {"encoding": "rgb7"},
    "zero size": {"height": 0, "width": 0, "step": 0, "data": array.array("B")},
    "step too small": {"step": 10},
    "truncated": {"data": array.array("B", bytes(100))},
    "no data": {"data": array.array("B")},
    "absurd size": {"height": 2**31, "width": 2**31, "step": 2**32 - 1},
}


@pytest.mark.parametrize("fields", BAD_IMAGES.values(), ids=BAD_IMAGES.keys())
def test_a_bad_image_is_counted_and_the_next_one_processed(live: Graph, fields: dict):
    masks = live.listen_output("mask")
    before = live.counts()
    live.send(image(**fields))
    live.diagnostics(
        "camera",
        lambda found: (
            int(found["dropped: bad"]) == before["bad"] + 1
            and found["level"] != "0"
            and found["last problem"] in found["message"]
        ),
    )
    with_stamp(masks, live.send(image()))
    assert live.state() == "active"


def test_boxes_and_labels_where_vision_msgs_is_installed(live: Graph):
    messages = pytest.importorskip("vision_msgs.msg", reason="vision_msgs is not installed")
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    labels = live.listen(f"{live.base}/camera/label_info", messages.LabelInfo, latched)
    named = wait_until(lambda: labels and labels[-1], "label_info")
    assert {each.class_id: each.class_name for each in named.class_map} == CLASSES
    assert named.threshold == pytest.approx(live.node.session.threshold("camera"))
    found = live.listen_output("detections", messages.Detection2DArray)
    assert live.set_parameters(threshold=0.0).successful
    (whole,) = with_stamp(found, live.send(image())).detections
    assert (whole.bbox.size_x, whole.bbox.size_y) == (64.0, 48.0)
    wait_until(lambda: labels[-1].threshold == 0.0, "the threshold in label_info")
    assert live.set_parameters(threshold=-1.0).successful


def test_a_model_that_fails_is_counted_and_survived(live: Graph):
    masks = live.listen_output("mask")
    failed = live.counts()["failed"]
    denoiser = next(p for p in live.node.session._detectors.any.denoiser.unet.parameters())
    kept = denoiser.detach().clone()
    with torch.no_grad():
        denoiser.fill_(float("nan"))
    live.send(image())
    live.diagnostics(
        "camera",
        lambda found: (
            int(found["dropped: failed"]) == failed + 1 and "not finite" in found["last problem"]
        ),
    )
    with torch.no_grad():
        denoiser.copy_(kept)
    with_stamp(masks, live.send(image()))


def test_newest_image_wins_and_every_image_is_counted(live: Graph):
    masks = live.listen_output("mask")
    before = live.counts()
    large = image(picture(720, 1280))
    for _ in range(15):
        stamp = live.send(large)
        time.sleep(0.005)
    with_stamp(masks, stamp)
    wait_until(lambda: live.counts()["pending"] == 0, "the last image")
    after = live.counts()
    gained = {key: after[key] - before[key] for key in after}
    assert gained["received"] >= 2
    assert gained["replaced"] >= 1
    dropped = sum(gained[key] for key in gained if key not in ("received", "processed", "pending"))
    assert gained["received"] == gained["processed"] + dropped


def test_old_images_are_dropped_unless_their_clock_is_another(live: Graph):
    masks = live.listen_output("mask")
    before = live.counts()["too_old"]
    live.send(image(), stamp=time.time_ns() - 7 * 10**9)
    live.diagnostics("camera", lambda found: int(found["dropped: too_old"]) == before + 1)
    with_stamp(masks, live.send(image(), stamp=0))
    with_stamp(masks, live.send(image(), stamp=time.time_ns() - 3600 * 10**9))
    with_stamp(masks, live.send(image(), stamp=time.time_ns() + 3600 * 10**9))
    assert live.set_parameters(max_input_age=0.0).successful
    with_stamp(masks, live.send(image(), stamp=time.time_ns() - 8 * 10**9))
    assert live.set_parameters(max_input_age=5.0).successful
