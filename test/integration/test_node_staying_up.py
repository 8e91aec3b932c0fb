"""A node that stays up: models that hang, memory that runs out, QoS that is put right, cycles."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from support.node_client import image
from support.ros_graph import Graph
from support.waiting import wait_until

from anomaly_detector_ros.runtime.devices import memory_bytes


@pytest.fixture(scope="module")
def live(light_profile: str) -> Iterator[Graph]:
    graph = Graph("up", profile=light_profile, device="cpu", max_input_age=0.0)
    wait_until(lambda: graph.state() == "active", "activation", timeout=120.0)
    yield graph
    graph.close()


class Hanging:
    """In place of a denoiser: comes back when `answer` is set."""

    def __init__(self, denoiser) -> None:
        self._denoiser, self.schedule = denoiser, denoiser.schedule
        self.answer, self.entered = threading.Event(), threading.Event()

    def __call__(self, x, t):
        self.entered.set()
        assert self.answer.wait(60)
        return self._denoiser(x, t)


def test_models_that_hang_are_replaced(live: Graph):
    masks = live.listen_output("mask")
    detector = live.node.session._detectors.any
    hanging = detector.denoiser = Hanging(detector.denoiser)
    live.send(image())
    assert hanging.entered.wait(10)
    assert live.set_parameters(watchdog_timeout=0.2).successful
    live.diagnostics(
        "camera",
        lambda found: found["dropped: hung"] == "1" and "watchdog_timeout" in found["last problem"],
    )
    assert live.set_parameters(watchdog_timeout=60.0).successful
    stamp = live.send(image())
    wait_until(lambda: masks, "a mask from fresh models")
    live.diagnostics("node", lambda found: found["detector thread restarts"] == "1")
    assert live.node.session._detectors.any is not detector
    hanging.answer.set()  # its result, now that it comes, is of no use
    live.diagnostics("camera", lambda found: found["processed"] == "1")
    assert [(m.header.stamp.sec, m.header.stamp.nanosec) for m in masks] == [stamp]
    counts = live.counts()
    assert counts["received"] == counts["processed"] + counts["hung"] + counts["pending"]


def test_memory_that_runs_out_is_told(live: Graph):
    masks = live.listen_output("mask")
    live.send(image())
    wait_until(lambda: masks, "a mask")
    models = live.node.session._detectors

    class Full:
        def __init__(self, denoiser) -> None:
            self.schedule = denoiser.schedule

        def __call__(self, x, t):
            raise RuntimeError("CUDA error: out of memory")

    models.any.denoiser = Full(models.any.denoiser)
    masks.clear()
    live.send(image())
    wait_until(lambda: masks, "a mask in spite of it")
    found = live.diagnostics("node", lambda found: found["memory"] != "suffices")
    assert found["level"] == "1"
    assert "edits one by one: CUDA error: out of memory" in found["message"]
    models._ladder._changed -= 3600.0  # an hour later
    live.send(image())
    live.diagnostics("node", lambda found: found["memory"] == "suffices")


def test_a_qos_problem_ends_with_the_publisher_that_caused_it(live: Graph):
    topic = f"{live.base}/camera/mask"
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    subscription = live.client.create_subscription(Image, topic, lambda message: None, latched)
    live.diagnostics("camera", lambda found: topic in found.get("incompatible QoS", ""))
    live.client.destroy_subscription(subscription)
    live.diagnostics("camera", lambda found: "incompatible QoS" not in found)


def test_a_reliable_subscription_tells_of_a_best_effort_camera(light_profile: str):
    name = "/reliable/camera/image_raw"
    override = {f"qos_overrides.{name}.subscription.reliability": "reliable"}
    graph = Graph("reliable", profile=light_profile, device="cpu", **override)
    try:
        wait_until(lambda: graph.state() == "active", "activation", timeout=120.0)
        effort = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        publisher = graph.client.create_publisher(Image, name, effort)
        found = graph.diagnostics("camera", lambda found: "incompatible QoS" in found)
        assert f"qos_overrides.{name}.subscription.reliability" in found["message"]
        # It stays as long as the publisher does.
        for _ in range(5):
            graph.diagnostics("camera", lambda found: "incompatible QoS" in found)
        graph.client.destroy_publisher(publisher)
        graph.diagnostics("camera", lambda found: "incompatible QoS" not in found)
    finally:
        graph.close()


def test_cycles_leave_nothing_behind(light_profile: str):
    graph = Graph("cycles", profile=light_profile, device="cpu", autostart=False)
    try:

        def cycle() -> None:
            for transition in ("configure", "activate", "deactivate", "cleanup"):
                assert graph.transition(transition)

        def present() -> tuple[int, int, int, int]:
            node = graph.node
            entities = (node.publishers, node.subscriptions, node.timers)
            return (*(len(list(each)) for each in entities), threading.active_count())

        for _ in range(3):
            cycle()
        before = present()
        grown: list[float] = []
        # Pools fill up in the first rounds; what leaks grows in all of them.
        while not grown or grown[-1] > 4:
            assert len(grown) < 6, f"each 8 cycles took so many MiB more: {grown}"
            gc.collect()
            memory = memory_bytes(_cpu())
            for _ in range(8):
                cycle()
            gc.collect()
            grown.append((memory_bytes(_cpu()) - memory) / 2**20)
        wait_until(lambda: present() == before, f"{before}, not {present()}")
    finally:
        graph.close()


def _cpu():
    import torch

    return torch.device("cpu")


def test_a_hung_model_does_not_keep_the_node_from_its_cleanup(light_profile: str, tmp_path: Path):
    graph = Graph("stuck", profile=light_profile, device="cpu", watchdog_timeout=1.0)
    try:
        wait_until(lambda: graph.state() == "active", "activation", timeout=120.0)
        detector = graph.node.session._detectors.any
        hanging = detector.denoiser = Hanging(detector.denoiser)
        graph.send(image())
        assert hanging.entered.wait(10)
        assert graph.transition("deactivate")
        assert graph.transition("cleanup")
        assert graph.transition("configure")
        hanging.answer.set()
    finally:
        graph.close()
