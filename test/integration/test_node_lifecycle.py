"""The node's life cycle in a live graph."""

from __future__ import annotations

import array
import threading
from pathlib import Path

import cv2
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from sensor_msgs.msg import CompressedImage
from support.node_client import image, picture
from support.ros_graph import Graph, with_stamp
from support.waiting import wait_until

from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.ros.detectors import Detectors


def test_an_impossible_transition_is_refused_and_survived(light_profile: str):
    graph = Graph("impossible", profile=light_profile, device="cpu")
    try:
        wait_until(lambda: graph.state() == "active", "activation", timeout=120.0)
        assert not graph.transition("configure")
        assert graph.state() == "active"
    finally:
        graph.close()


def test_what_the_node_takes_of_rclpys_private_parts_is_there(light_profile: str):
    """A release that moves them fails here; `state`, `_guard_change_state` and
    `Parameters` say why."""
    graph = Graph("private", profile=light_profile, autostart=False)
    try:
        assert graph.node.state == graph.state() == "unconfigured"
        service = graph.node._service_change_state
        assert service in list(graph.node.services)
        assert service.srv_name.endswith("/anomaly_detector/change_state")
        assert service.callback.__qualname__.startswith("AnomalyDetectorNode._guard_change_state")
        assert graph.node._parameter_overrides["profile"].value == light_profile
    finally:
        graph.close()


def test_it_answers_while_models_load(light_profile: str, monkeypatch: pytest.MonkeyPatch):
    loading, go_on = threading.Event(), threading.Event()
    load = Detectors.load

    def slow(detectors: Detectors) -> Detector:
        loading.set()
        assert go_on.wait(60.0)
        return load(detectors)

    monkeypatch.setattr(Detectors, "load", slow)
    graph = Graph("loading", profile=light_profile, device="cpu")
    try:
        assert loading.wait(120.0)
        assert graph.state() == "configuring"
        assert not graph.transition("configure")
        assert graph.set_parameters(threshold=0.5).successful
        graph.diagnostics("node", lambda found: found["state"] == "configuring")
        go_on.set()
        wait_until(lambda: graph.state() == "active", "activation", timeout=120.0)
    finally:
        go_on.set()
        graph.close()


def test_life_cycle_without_autostart(light_profile: str):
    graph = Graph("cycle", profile=light_profile, autostart=False, cameras=["other"])
    try:
        assert graph.state() == "unconfigured"
        graph.diagnostics("node", lambda found: found["level"] == "1")
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
        found = graph.diagnostics("node", lambda found: found["level"] == "2")
        assert str(tmp_path / "empty") in found["message"]
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
            graph.diagnostics(camera, lambda found: found["processed"] == "1")
    finally:
        graph.close()
