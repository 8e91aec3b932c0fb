"""The node in a live graph, with a real detector of random weights."""

from __future__ import annotations

import array
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

import torch
from rclpy.qos import DurabilityPolicy, QoSProfile
from ros_graph import Graph, image, picture, wait_until
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import SetBool

from anomaly_detector_ros.ros.conversion import image_to_rgb
from anomaly_detector_ros.ros.outputs import IMAGE_OUTPUTS
from anomaly_detector_ros.ros.parameters import BY_NAME


@pytest.fixture(scope="module")
def live(light_profile: str) -> Iterator[Graph]:
    """An active node, shared by the tests that leave it as they found it."""
    graph = Graph("live", profile=light_profile, device="cpu", max_input_age=5.0)
    wait_until(lambda: graph.state() == "active", "activation", timeout=120.0)
    yield graph
    graph.close()


def with_stamp(messages: list[Any], stamp: tuple[int, int]) -> Any:
    """The message of that header stamp, as soon as it has come."""

    def find() -> Any:
        return next(
            (m for m in list(messages) if (m.header.stamp.sec, m.header.stamp.nanosec) == stamp),
            None,
        )

    return wait_until(find, f"a message stamped {stamp}")


def values(message: Image) -> np.ndarray:
    """Pixels of an output, read as its encoding says."""
    dtype = {"32FC1": np.float32, "mono8": np.uint8, "16UC1": np.uint16, "rgb8": np.uint8}
    pixels = np.frombuffer(message.data, dtype[message.encoding])
    assert message.step * message.height == len(message.data)
    channels = (3,) if message.encoding == "rgb8" else ()
    return pixels.reshape(message.height, message.width, *channels)


def jpeg_pixels(data: Any) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


# -- images --------------------------------------------------------------------------------------


def test_every_output_arrives_as_promised(live: Graph):
    collected = {name: live.listen_output(name) for name in IMAGE_OUTPUTS}
    jpegs = live.listen_output("overlay/compressed", CompressedImage)
    infos = live.listen_output("camera_info", CameraInfo)
    info = CameraInfo(height=48, width=64, distortion_model="plumb_bob", d=[0.1, 0, 0, 0, 0])
    info.k[0] = 321.0
    live.send_info(info)
    wait_until(lambda: live.node._cameras[0]._info is not None, "the camera_info")
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
    from anomaly_detector_ros.ros import camera

    rendered: list[str] = []
    real = camera.render

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
    monkeypatch.setattr(camera, "render", counting)
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
        lambda status, found: (
            int(found["dropped: bad"]) == before["bad"] + 1
            and status.level != b"\x00"
            and found["last problem"] in status.message
        ),
    )
    with_stamp(masks, live.send(image()))
    assert live.state() == "active"


def test_a_model_that_fails_is_counted_and_survived(live: Graph):
    masks = live.listen_output("mask")
    failed = live.counts()["failed"]
    denoiser = next(p for p in live.node._detector.denoiser.unet.parameters())
    kept = denoiser.detach().clone()
    with torch.no_grad():
        denoiser.fill_(float("nan"))
    live.send(image())
    live.diagnostics(
        "camera",
        lambda status, found: (
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
    live.diagnostics("camera", lambda status, found: int(found["dropped: too_old"]) == before + 1)
    with_stamp(masks, live.send(image(), stamp=0))
    with_stamp(masks, live.send(image(), stamp=time.time_ns() - 3600 * 10**9))
    with_stamp(masks, live.send(image(), stamp=time.time_ns() + 3600 * 10**9))
    assert live.set_parameters(max_input_age=0.0).successful
    with_stamp(masks, live.send(image(), stamp=time.time_ns() - 8 * 10**9))
    assert live.set_parameters(max_input_age=5.0).successful


# -- parameters, services, diagnostics -----------------------------------------------------------


def test_every_parameter_has_a_descriptor(live: Graph):
    for described in live.describe(list(BY_NAME)):
        spec = BY_NAME[described.name]
        assert spec.text in described.description
        assert described.read_only == spec.read_only
        assert bool(described.floating_point_range or described.integer_range) == (
            spec.minimum is not None
        )


def test_threshold_changes_at_run_time(live: Graph):
    masks, heatmaps = live.listen_output("mask"), live.listen_output("heatmap")
    for threshold in (0.0, 0.1, 0.6):
        assert live.set_parameters(threshold=threshold).successful
        stamp = live.send(image())
        heatmap = values(with_stamp(heatmaps, stamp))
        assert heatmap.min() < 0.1 < 0.6 < heatmap.max()
        expected = np.where(heatmap >= np.float32(threshold), 255, 0)
        assert np.array_equal(values(with_stamp(masks, stamp)), expected)
    assert live.set_parameters(threshold=-1.0).successful
    live.diagnostics("node", lambda status, found: found["threshold"] == "0.3")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"threshold": 1.5}, "threshold"),
        ({"max_rate": -2.0}, "max_rate"),
        ({"profile": "paper"}, "unconfigured"),
        ({"cameras": ["front"]}, "unconfigured"),
        ({"autostart": False}, "read-only"),
        ({"jpeg_quality": "high"}, "type"),
        ({"no_such_parameter": 1}, "declared"),
    ],
)
def test_a_bad_parameter_is_refused_with_the_reason(live: Graph, changes: dict, reason: str):
    result = live.set_parameters(**changes)
    assert not result.successful
    assert reason in result.reason


def test_rate_limit(live: Graph):
    masks = live.listen_output("mask")
    assert live.set_parameters(max_rate=2.0).successful
    begun = time.monotonic()
    while time.monotonic() < begun + 1.6:
        live.send(image())
        time.sleep(0.03)
    assert live.set_parameters(max_rate=0.0).successful
    with_stamp(masks, live.send(image()))
    assert 3 <= len(masks) <= 6


def test_enable_pauses_and_resumes(live: Graph):
    masks = live.listen_output("mask")
    paused = live.counts()["paused"]
    answer = live.call(SetBool, "enable", SetBool.Request(data=False))
    assert answer.success
    assert "paused" in answer.message
    stamp = live.send(image())
    live.diagnostics(
        "camera",
        lambda status, found: (
            int(found["dropped: paused"]) == paused + 1 and status.message == "paused"
        ),
    )
    assert live.call(SetBool, "enable", SetBool.Request(data=True)).success
    with_stamp(masks, live.send(image()))
    assert stamp not in [(m.header.stamp.sec, m.header.stamp.nanosec) for m in masks]


def test_diagnostics_tell_models_latencies_and_calibration(live: Graph):
    masks = live.listen_output("mask")
    with_stamp(masks, live.send(image()))
    status = live.diagnostics("node", lambda status, found: "profile" in found)
    found = {pair.key: pair.value for pair in status.values}
    assert "uncalibrated" in status.message
    assert (found["profile"], found["features"], found["state"]) == ("light_test", "rgb", "active")
    assert float(found["device memory (MiB)"]) > 10
    status = live.diagnostics("camera", lambda status, found: "latency: synthesis (s)" in found)
    found = {pair.key: pair.value for pair in status.values}
    assert 0 < float(found["latency: synthesis (s)"]) <= float(found["latency: total (s)"])
    assert float(found["latency: total (s)"]) < float(found["latency (s)"])
    assert 0 < float(found["input age (s)"]) < 5
    times = [m.header.stamp.sec + m.header.stamp.nanosec * 1e-9 for m in _diagnostics(live)]
    assert np.diff(times).mean() == pytest.approx(1.0, abs=0.3)


def _diagnostics(live: Graph) -> list[Any]:
    collected = live.messages["/diagnostics"]
    collected.clear()
    wait_until(lambda: len(collected) >= 4, "diagnostics")
    return list(collected)


def test_incompatible_qos_is_told(live: Graph):
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    topic = f"{live.base}/camera/mask"
    subscription = live.client.create_subscription(Image, topic, lambda message: None, latched)
    try:
        status = live.diagnostics("camera", lambda status, found: "incompatible QoS" in found)
    finally:
        live.client.destroy_subscription(subscription)
    advice = next(pair.value for pair in status.values if pair.key == "incompatible QoS")
    assert f"qos_overrides.{topic}.publisher.durability" in advice


def test_an_impossible_transition_is_refused_and_survived(live: Graph):
    assert not live.transition("configure")
    assert live.state() == "active"


# -- life cycle ----------------------------------------------------------------------------------


def test_life_cycle_without_autostart(light_profile: str):
    graph = Graph("cycle", profile=light_profile, autostart=False, cameras=["other"])
    try:
        assert graph.state() == "unconfigured"
        graph.diagnostics("node", lambda status, found: status.level == b"\x01")
        assert not graph.transition("activate")
        assert graph.set_parameters(cameras=["camera"], image_transport="compressed").successful
        assert graph.transition("configure")
        assert (
            graph.client.count_subscribers(
                f"{graph.client.get_namespace()}/camera/image_raw/compressed"
            )
            == 0
        )
        assert not graph.set_parameters(cameras=["front"]).successful
        assert graph.transition("activate")
        masks = graph.listen_output("mask")
        jpeg = cv2.imencode(".jpg", picture(40, 50))[1].tobytes()
        compressed = CompressedImage(format="jpeg", data=array.array("B", jpeg))
        message = with_stamp(masks, graph.send(compressed))
        assert (message.height, message.width) == (40, 50)
        for number, corrupt in enumerate((jpeg[: len(jpeg) // 2], b"no picture", b""), 1):
            graph.send(CompressedImage(format="jpeg", data=array.array("B", corrupt)))
            wait_until(lambda n=number: graph.counts()["bad"] == n, "the bad image")
        with_stamp(masks, graph.send(compressed))
        assert graph.counts()["bad"] == 3
        assert graph.transition("deactivate")
        assert graph.transition("activate")
        with_stamp(masks, graph.send(compressed))
        for _ in range(8):  # each destroys subscriptions that the executor waits for
            assert graph.transition("deactivate")
            assert graph.transition("activate")
        with_stamp(masks, graph.send(compressed))
        assert graph.transition("deactivate")
        assert graph.transition("cleanup")
        assert graph.set_parameters(image_transport="raw").successful
        assert graph.transition("configure")
        assert graph.transition("activate")
        with_stamp(masks, graph.send(image()))
    finally:
        graph.close()


def test_missing_weights_leave_the_node_up(light_profile: str, tmp_path):
    text = Path(light_profile).read_text()
    broken = tmp_path / "broken.yaml"
    (tmp_path / "empty").mkdir()
    model = next(line for line in text.splitlines() if "model:" in line)
    broken.write_text(text.replace(model.split("model: ")[1], str(tmp_path / "empty")))
    graph = Graph("missing", profile=str(broken), offline=True)
    try:
        status = graph.diagnostics("node", lambda status, found: status.level == b"\x02")
        assert str(tmp_path / "empty") in status.message
        assert graph.state() == "unconfigured"
        assert graph.set_parameters(profile=light_profile).successful
        assert graph.transition("configure")
        assert graph.transition("activate")
        masks = graph.listen_output("mask")
        with_stamp(masks, graph.send(image()))
    finally:
        graph.close()


def test_two_cameras_share_the_models(light_profile: str):
    graph = Graph("pair", profile=light_profile, cameras=["front", "rear/left"])
    try:
        wait_until(lambda: graph.state() == "active", "activation", timeout=120.0)
        masks = {c: graph.listen_output("mask", camera=c) for c in ("front", "rear/left")}
        sizes = {"front": (30, 40), "rear/left": (20, 50)}
        stamps = {c: graph.send(image(picture(*size)), camera=c) for c, size in sizes.items()}
        for camera, size in sizes.items():
            message = with_stamp(masks[camera], stamps[camera])
            assert (message.height, message.width) == size
            graph.diagnostics(camera, lambda status, found: found["processed"] == "1")
    finally:
        graph.close()
