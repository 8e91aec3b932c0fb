"""Several cameras in a live graph: of their own settings, and none disturbed by another."""

from __future__ import annotations

import array
import time

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage
from support.node_client import image, picture
from support.ros_graph import Graph
from support.waiting import wait_until

from anomaly_detector_ros.ros.parameters import CAMERA_SPECS, camera_parameter


def active(namespace: str, **parameters: object) -> Graph:
    graph = Graph(namespace, device="cpu", **parameters)
    wait_until(lambda: graph.state() == "active", "activation", timeout=120.0)
    return graph


def jpeg(pixels: np.ndarray) -> CompressedImage:
    data = cv2.imencode(".jpg", pixels)[1].tobytes()
    return CompressedImage(format="jpeg", data=array.array("B", data))


def test_a_camera_that_stops_or_changes_disturbs_no_other(light_profile: str):
    graph = active("changes", profile=light_profile, cameras=["steady", "other"], max_input_age=5.0)
    try:
        steady = graph.listen_output("mask", camera="steady")
        other = graph.listen_output("mask", camera="other")
        stamps = []
        for message in (
            image(picture(30, 41)),
            image(picture(96, 128)),
            image(picture(30, 41)[..., ::-1], encoding="bgr8"),
            image(encoding="rgb7"),
            image(data=array.array("B", bytes(10))),
            image(height=0, width=0, step=0, data=array.array("B")),
            image(picture(20, 30)),
            *[None] * 5,  # and then nothing any more
        ):
            if message is not None:
                graph.send(message, camera="other")
            for _ in range(2):
                stamps.append(graph.send(image(), camera="steady"))
                wait_until(lambda: len(steady) == len(stamps), "a mask of the steady camera")
        assert [(m.header.stamp.sec, m.header.stamp.nanosec) for m in steady] == stamps
        assert {(m.height, m.width) for m in steady} == {(48, 64)}
        assert [(m.height, m.width) for m in other] == [(30, 41), (96, 128), (30, 41), (20, 30)]
        graph.diagnostics("other", lambda found: found["dropped: bad"] == "3")
        graph.diagnostics("steady", lambda found: found["level"] == "0")
    finally:
        graph.close()


def test_cameras_have_settings_of_their_own(light_profile: str):
    own = {
        camera_parameter("rear/left", "image_transport"): "compressed",
        camera_parameter("rear/left", "threshold"): 0.0,
        camera_parameter("front", "max_rate"): 2.0,
    }
    graph = active(
        "own", profile=light_profile, cameras=["front", "rear/left"], threshold=1.0, **own
    )
    try:
        names = [camera_parameter("front", spec.name) for spec in CAMERA_SPECS]
        for described, spec in zip(graph.describe(names), CAMERA_SPECS, strict=True):
            assert spec.text in described.description
        masks = {c: graph.listen_output("mask", camera=c) for c in ("front", "rear/left")}
        begun = time.monotonic()
        while len(masks["rear/left"]) < 12 or len(masks["front"]) < 3:
            assert time.monotonic() < begun + 30
            graph.send(image(), camera="front")
            graph.send(jpeg(picture()), camera="rear/left")
            time.sleep(0.05)
        assert len(masks["front"]) <= 2 + 2 * (time.monotonic() - begun)
        assert len(masks["rear/left"]) > len(masks["front"])
        assert min(masks["front"][0].data) == 0
        assert min(masks["rear/left"][0].data) == 255
        # At run time, by the node's own value, too.
        changed = {"front.threshold": 0.0, "front.max_rate": -1.0}
        assert graph.set_parameters(**changed).successful
        wait_until(lambda: graph.counts("front")["pending"] == 0, "the image that waited")
        masks["front"].clear()
        begun = time.monotonic()
        for number in range(1, 11):
            graph.send(image(), camera="front")
            wait_until(lambda n=number: len(masks["front"]) == n, "a mask")
        assert time.monotonic() - begun < 4.0  # 4.5 s at least with the limit
        assert min(masks["front"][-1].data) == 255
        assert not graph.set_parameters(**{"front.image_transport": "compressed"}).successful
        assert not graph.set_parameters(**{"rear.left.threshold": 7.0}).successful
    finally:
        graph.close()


def test_the_cameras_parameters_follow_the_list(light_profile: str):
    graph = Graph("list", profile=light_profile, autostart=False, cameras=["front"])
    try:
        assert graph.set_parameters(**{"front.max_rate": 3.0}).successful
        assert not graph.set_parameters(**{"rear.max_rate": 3.0}).successful
        assert graph.set_parameters(cameras=["front", "rear"]).successful
        assert graph.set_parameters(**{"rear.max_rate": 4.0}).successful
        assert graph.node.parameters.of_camera("front", "max_rate") == 3.0
        assert graph.set_parameters(cameras=["rear"]).successful
        assert not graph.node.has_parameter("front.max_rate")
        assert graph.node.parameters.of_camera("rear", "max_rate") == 4.0
        assert graph.node.parameters.of_camera("rear", "image_transport") == "raw"
    finally:
        graph.close()


def test_a_batch_of_cameras_gives_what_single_images_give(light_profile: str):
    graph = active("batch", profile=light_profile, cameras=["a", "b"], max_input_age=5.0)
    try:
        edited = {c: graph.listen_output("edited", camera=c) for c in ("a", "b")}
        sizes = {"a": (48, 64), "b": (30, 41)}
        for together in (False, True):
            assert graph.set_parameters(batch_cameras=together).successful
            graph.node.session._worker._changed.acquire()  # both wait before the worker looks
            try:
                for camera, size in sizes.items():
                    graph.send(image(picture(*size)), camera=camera)
                time.sleep(0.3)
            finally:
                graph.node.session._worker._changed.release()
            count = 2 if together else 1
            for messages in edited.values():
                wait_until(lambda m=messages, n=count: len(m) == n, "edited images")
        for camera, (single, batch) in edited.items():
            assert (batch.height, batch.width) == sizes[camera]
            difference = np.subtract(single.data, batch.data, dtype=int)
            assert np.abs(difference).max() <= 1
    finally:
        graph.close()


def test_impossible_settings_of_a_camera_are_refused_at_start(light_profile: str):
    from anomaly_detector_ros.errors import UserError

    with pytest.raises(UserError, match=r"rear\.left\.max_rate"):
        Graph("impossible", cameras=["rear/left"], **{"rear.left.max_rate": -2.0})
    assert Parameter("x", value=1)  # rclpy is still usable
