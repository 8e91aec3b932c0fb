"""The node's parameters, services and diagnostics in a live graph."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image
from std_srvs.srv import SetBool
from support.node_client import image
from support.ros_graph import Graph, values, with_stamp
from support.waiting import wait_until

from anomaly_detector_ros.imaging.messages import image_fields
from anomaly_detector_ros.ros.parameters import BY_NAME


@pytest.fixture(scope="module")
def live(light_profile: str) -> Iterator[Graph]:
    """An active node, shared by the tests that leave it as they found it."""
    graph = Graph("parameters", profile=light_profile, device="cpu", max_input_age=5.0)
    wait_until(lambda: graph.state() == "active", "activation", timeout=120.0)
    yield graph
    graph.close()


def test_every_parameter_has_a_descriptor(live: Graph):
    for described in live.describe(list(BY_NAME)):
        spec = BY_NAME[described.name]
        assert spec.text in described.description
        assert described.read_only == spec.read_only
        assert bool(described.floating_point_range or described.integer_range) == (
            spec.bounds is not None
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
    live.diagnostics("node", lambda found: found["threshold"] == "0.3")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"threshold": 1.5}, "threshold"),
        ({"max_rate": -2.0}, "max_rate"),
        ({"profile": "paper"}, "unconfigured"),
        ({"cameras": ["front"]}, "unconfigured"),
        ({"autostart": False}, "read-only"),
        ({"jpeg_quality": "high"}, "type"),
        ({"grey_range": [9.0, 7.0]}, "lower one first"),
        ({"no_such_parameter": 1}, "declared"),
    ],
)
def test_a_bad_parameter_is_refused_with_the_reason(live: Graph, changes: dict, reason: str):
    result = live.set_parameters(**changes)
    assert not result.successful
    assert reason in result.reason


def test_integers_are_taken_for_numbers(live: Graph):
    assert live.set_parameters(threshold=1).successful
    live.diagnostics("node", lambda found: found["threshold"] == "1")
    assert live.set_parameters(grey_range=[0, 4095]).successful
    assert live.set_parameters(**{"camera.height": 2}).successful
    assert not live.set_parameters(threshold=2).successful
    assert not live.set_parameters(jpeg_quality=90.0).successful
    for name, value in {"threshold": -1, "grey_range": [0, 0], "camera.height": 0}.items():
        assert live.set_parameters(**{name: value}).successful


def test_a_range_of_greys_holds_for_the_next_image(live: Graph):
    overlays = live.listen_output("overlay")
    counts = np.full((48, 64), 6000, np.uint16)
    shades = []
    for limits in ([6000.0, 9000.0], [5000.0, 7000.0], [0.0, 6000.0]):  # black, grey, white
        assert live.set_parameters(grey_range=limits).successful
        message = Image(**image_fields(counts, "16UC1"))
        shown = with_stamp(overlays, live.send(message))
        shades.append(np.frombuffer(shown.data, np.uint8).mean())  # with the heat's colours
    assert live.set_parameters(grey_range=[0.0, 0.0]).successful
    assert shades[0] + 20 < shades[1] < shades[2] - 20, shades


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
        lambda found: int(found["dropped: paused"]) == paused + 1 and found["message"] == "paused",
    )
    assert live.call(SetBool, "enable", SetBool.Request(data=True)).success
    with_stamp(masks, live.send(image()))
    assert stamp not in [(m.header.stamp.sec, m.header.stamp.nanosec) for m in masks]


def test_diagnostics_tell_models_latencies_and_calibration(live: Graph):
    masks = live.listen_output("mask")
    with_stamp(masks, live.send(image()))
    found = live.diagnostics("node", lambda found: "profile" in found)
    assert "uncalibrated" in found["message"]
    assert (found["profile"], found["features"], found["state"]) == ("light_test", "rgb", "active")
    assert float(found["device memory (MiB)"]) > 10
    found = live.diagnostics("camera", lambda found: "latency: synthesis (s)" in found)
    assert 0 < float(found["latency: synthesis (s)"]) <= float(found["latency: total (s)"])
    assert float(found["latency: total (s)"]) < float(found["latency (s)"])
    assert 0 < float(found["input age (s)"]) < 5
    times = [m.header.stamp.sec + m.header.stamp.nanosec * 1e-9 for m in _diagnostics(live)]
    assert np.diff(times).mean() == pytest.approx(1.0, abs=0.3)


def _diagnostics(live: Graph) -> list[Any]:
    collected = live.heard
    collected.clear()
    wait_until(lambda: len(collected) >= 4, "diagnostics")
    return list(collected)


def test_incompatible_qos_is_told(live: Graph):
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    topic = f"{live.base}/camera/mask"
    subscription = live.client.create_subscription(Image, topic, lambda message: None, latched)
    try:
        found = live.diagnostics("camera", lambda found: "incompatible QoS" in found)
    finally:
        live.client.destroy_subscription(subscription)
    advice = found["incompatible QoS"]
    assert f"qos_overrides.{topic}.publisher.durability" in advice
