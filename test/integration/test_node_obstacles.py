"""Obstacles and costmap of the node in a live graph."""

from __future__ import annotations

import array
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from nav_msgs.msg import OccupancyGrid
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from support.node_client import image
from support.ros_graph import Graph
from support.waiting import wait_until
from visualization_msgs.msg import Marker, MarkerArray

HEIGHT, WIDTH = 48, 64
K = [60.0, 0.0, 32.0, 0.0, 60.0, 20.0, 0.0, 0.0, 1.0]
LATCHED = QoSProfile(
    depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL, reliability=ReliabilityPolicy.RELIABLE
)


@pytest.fixture(scope="module")
def live(light_profile: str) -> Iterator[Graph]:
    """An active node that takes every pixel for an anomaly: threshold 0."""
    parameters = {
        "profile": light_profile,
        "device": "cpu",
        "threshold": 0.0,
        "max_input_age": 5.0,
        "camera.height": 1.2,
        "camera.pitch": 0.2,
        "costmap.frame": "base_link",
        "costmap.decay": 0.0,
    }
    graph = Graph("obstacles", **parameters)
    wait_until(lambda: graph.state() == "active", "activation", timeout=120.0)
    yield graph
    graph.close()


def info(**fields: Any) -> CameraInfo:
    right = {"height": HEIGHT, "width": WIDTH, "k": K, "distortion_model": "plumb_bob"}
    return CameraInfo(**{**right, **fields})


def send_depth(graph: Graph, metres: float, stamp: int, height: int = HEIGHT) -> None:
    millimetres = np.full((height, WIDTH), metres * 1000, np.uint16)
    message = Image(height=height, width=WIDTH, encoding="16UC1", step=2 * WIDTH)
    message.data = array.array("B", millimetres.tobytes())
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 1_000_000_000)
    graph.publisher("camera/depth", Image).publish(message)


def cloud_of(graph: Graph, messages: list[Any], depth: float | None = None) -> PointCloud2:
    """The cloud of an image that is sent now, after its depth; sent again until it comes."""
    for _ in range(20):
        stamp = time.time_ns()
        if depth is not None:
            send_depth(graph, depth, stamp - 20_000_000)
            time.sleep(0.1)
        sent = graph.send(image(), stamp=stamp)
        deadline = time.monotonic() + 3.0
        while time.monotonic() < deadline:
            for message in list(messages):
                if (message.header.stamp.sec, message.header.stamp.nanosec) == sent:
                    return message
            time.sleep(0.01)
    pytest.fail("no cloud came")


def points(message: PointCloud2) -> np.ndarray:
    return np.frombuffer(bytes(message.data), np.float32).reshape(message.height, message.width, 4)


def test_obstacles_from_ground_and_from_depth(live: Graph):
    live.send_info(info())
    # As Nav2's obstacle layer subscribes.
    clouds = live.listen(f"{live.base}/camera/obstacles", PointCloud2, qos_profile_sensor_data)
    time.sleep(0.5)
    ground = cloud_of(live, clouds)
    assert ground.header.frame_id == "optical"
    assert ground.height == 1
    assert ground.width > 10
    found = points(ground)[0]
    assert np.linalg.norm(found[:, :3], axis=1).max() <= 15.0
    assert ((found[:, 3] >= 0) & (found[:, 3] <= 1)).all()
    depth = points(cloud_of(live, clouds, depth=2.5))[0]
    np.testing.assert_allclose(depth[:, 2], 2.5, rtol=1e-6)


def test_markers_bear_the_distance(live: Graph):
    live.send_info(info())
    received = live.listen(f"{live.base}/camera/markers", MarkerArray)
    clouds = live.listen(f"{live.base}/camera/obstacles", PointCloud2, qos_profile_sensor_data)
    time.sleep(0.5)
    cloud_of(live, clouds, depth=2.5)
    wait_until(lambda: received, "markers")
    first, box, label = received[-1].markers
    assert first.action == Marker.DELETEALL
    assert (box.type, label.type) == (Marker.CUBE, Marker.TEXT_VIEW_FACING)
    assert box.header.frame_id == "optical"
    # The whole image, flat at 2.5 m; the nearest of it is in its middle.
    assert box.pose.position.z == pytest.approx(2.5, abs=0.01)
    assert label.pose.position.y < box.pose.position.y - box.scale.y / 2
    assert label.text.endswith(" 2.5 m")


def test_a_camera_info_latched_before_activation_counts(live: Graph):
    clouds = live.listen(f"{live.base}/camera/obstacles", PointCloud2, qos_profile_sensor_data)
    latched = live.client.create_publisher(CameraInfo, "camera/camera_info", LATCHED)
    assert live.transition("deactivate")
    latched.publish(info())
    assert live.transition("activate")
    time.sleep(0.5)
    try:
        assert cloud_of(live, clouds).width > 10
        assert live.diagnostics("camera", lambda found: True).get("incompatible QoS") is None
    finally:
        live.client.destroy_publisher(latched)


def test_a_slash_before_the_images_frame_is_left_out(live: Graph):
    live.send_info(info())
    clouds = live.listen(f"{live.base}/camera/obstacles", PointCloud2, qos_profile_sensor_data)
    time.sleep(0.5)
    message = image()
    message.header.frame_id = "/left_optical"
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(time.time_ns(), 10**9)
    live.publisher("camera/image_raw", Image).publish(message)
    wait_until(lambda: clouds, "a cloud")
    assert clouds[-1].header.frame_id == "left_optical"


def test_settings_for_drivers_that_differ(live: Graph):
    live.send_info(info())
    clouds = live.listen(f"{live.base}/camera/obstacles", PointCloud2, qos_profile_sensor_data)
    time.sleep(0.5)
    try:
        assert live.set_parameters(depth_unit=0.0005).successful
        optical = points(cloud_of(live, clouds, depth=2.5))[0]
        np.testing.assert_allclose(optical[:, 2], 1.25, rtol=1e-6)
        assert live.set_parameters(**{"camera.image_frame": "body"}).successful
        body = points(cloud_of(live, clouds, depth=2.5))[0]
        np.testing.assert_allclose(body[:, 0], 1.25, rtol=1e-6)  # forward
        np.testing.assert_allclose(body[:, 1:3], -optical[:, :2], atol=1e-6)  # left and up
        # The lens is bent, its images are not.
        new = [30.0, 0.0, 32.0, 0.0, 0.0, 30.0, 20.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        live.send_info(info(d=[-0.2, 0.0, 0.0, 0.0, 0.0], p=new))
        time.sleep(0.3)
        assert live.set_parameters(rectification="rectified").successful
        wider = points(cloud_of(live, clouds, depth=2.5))[0]
        assert np.ptp(wider[:, 1]) == pytest.approx(63 / 30 * 1.25, abs=0.1)
    finally:
        live.set_parameters(depth_unit=0.0, rectification="auto", **{"camera.image_frame": ""})
        live.send_info(info())


def test_organised_cloud_has_the_masks_size(live: Graph):
    live.send_info(info())
    clouds = live.listen(f"{live.base}/camera/points", PointCloud2, qos_profile_sensor_data)
    time.sleep(0.5)
    cloud = cloud_of(live, clouds, depth=3.0)
    assert (cloud.height, cloud.width) == (HEIGHT, WIDTH)
    np.testing.assert_allclose(points(cloud)[..., 2], 3.0, rtol=1e-6)
    np.testing.assert_allclose(points(cloud)[0, 0, :2], [-1.6, -1.0], rtol=1e-5)


def test_costmap_is_latched(live: Graph):
    live.send_info(info())
    topic = f"{live.base}/costmap"
    grids = live.listen(topic, OccupancyGrid, LATCHED)
    for _ in range(50):
        live.send(image())
        time.sleep(0.1)
        if grids:
            break
    grid = wait_until(lambda: grids and grids[-1], "a costmap")
    assert grid.header.frame_id == "base_link"
    assert (grid.info.height, grid.info.width) == (200, 200)
    assert max(grid.data) >= 65
    # The layer that comes later gets the last one although no image is sent.
    later = live.listen(topic, OccupancyGrid, LATCHED)
    wait_until(lambda: later, "the latched costmap")


@pytest.mark.parametrize(
    "fields",
    [
        {"distortion_model": "", "d": [0.0] * 5},
        {"distortion_model": "none"},
        {"d": [1e-3, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]},
        {"d": [1e-3] * 8},
        {"distortion_model": "equidistant", "d": [1e-3, 0.0, 0.0, 0.0, 0.0]},
        {"height": 2 * HEIGHT, "width": 2 * WIDTH, "k": [*(2 * v for v in K[:-1]), 1.0]},
    ],
    ids=str,
)
def test_camera_info_as_drivers_send_it_gives_obstacles(live: Graph, fields: dict[str, Any]):
    clouds = live.listen(f"{live.base}/camera/obstacles", PointCloud2, qos_profile_sensor_data)
    live.send_info(info(**fields))
    time.sleep(0.3)
    assert cloud_of(live, clouds).width > 10
    live.send_info(info())


@pytest.mark.parametrize(
    "fields", [{"k": [0.0] * 9}, {"distortion_model": "fish"}, {"d": [1.0]}, {"width": 9}]
)
def test_bad_camera_info_stops_nothing(live: Graph, fields: dict[str, Any]):
    clouds = live.listen(f"{live.base}/camera/obstacles", PointCloud2, qos_profile_sensor_data)
    heat = live.listen_output("heatmap")
    live.send_info(info(**fields))
    time.sleep(0.3)
    clouds.clear()
    sent = live.send(image())
    wait_until(lambda: any(m.header.stamp.nanosec == sent[1] for m in list(heat)), "a heatmap")
    assert not clouds
    live.send_info(info())
    time.sleep(0.3)
    assert cloud_of(live, clouds).width > 10


def test_poses_are_judged_when_set(live: Graph):
    refused = live.set_parameters(**{"camera.extrinsics": [1.0] * 16})
    assert not refused.successful
    assert "rotation" in refused.reason
    turned = [0.0, 0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 1.5, 0.0, 0.0, 0.0, 1.0]
    assert live.set_parameters(**{"camera.extrinsics": turned}).successful
    assert live.set_parameters(**{"camera.extrinsics": [0.0] * 16}).successful
    assert live.set_parameters(**{"camera.pitch": -0.1}).successful
    assert live.set_parameters(**{"camera.pitch": 0.2}).successful
