"""What whoever listens can rely on, in a live graph: states of outputs, and silence."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from nav_msgs.msg import OccupancyGrid
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, PointCloud2
from std_srvs.srv import SetBool
from support.node_client import Received, image
from support.ros_graph import Graph
from support.waiting import wait_until

from anomaly_detector_ros.mapping.poses import mounted

HEIGHT, WIDTH = 48, 64
K = [60.0, 0.0, 32.0, 0.0, 60.0, 20.0, 0.0, 0.0, 1.0]
HOURS = 3 * 3600 * 1_000_000_000
LATCHED = QoSProfile(
    depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL, reliability=ReliabilityPolicy.RELIABLE
)


def turned(degrees: float) -> list[float]:
    """The extrinsics of a camera 1.2 m above the ground that looks down and to one side."""
    pose, angle = mounted(1.2, pitch=0.2), np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    pose[:2, :3] = turn @ pose[:2, :3]
    return [float(number) for number in pose.ravel()]


@contextmanager
def graph_of(name: str, profile: str, **parameters: object) -> Iterator[Graph]:
    """An active node that takes every pixel for an anomaly: threshold 0."""
    common = {"profile": profile, "device": "cpu", "threshold": 0.0, "max_input_age": 5.0,
              "costmap.frame": "base_link"}  # fmt: skip
    graph = Graph(name, **{**common, **parameters})
    try:
        wait_until(lambda: graph.state() == "active", "activation", timeout=120.0)
        yield graph
    finally:
        graph.close()


def send_info(graph: Graph, camera: str = "camera") -> None:
    info = CameraInfo(height=HEIGHT, width=WIDTH, k=K, distortion_model="plumb_bob")
    graph.publisher(f"{camera}/camera_info", CameraInfo).publish(info)


class Cameras:
    """Sends images of cameras, each stamped by a clock of its own, until it is left."""

    def __init__(self, graph: Graph, clocks: dict[str, int | None], rate: float = 5.0) -> None:
        self._graph, self.clocks, self._period = graph, clocks, 1.0 / rate
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._left.wait(self._period):
            for camera, ahead in list(self.clocks.items()):
                stamp = 0 if ahead is None else time.time_ns() + ahead
                self._graph.send(image(), stamp=stamp, camera=camera)

    def __enter__(self) -> Cameras:
        for camera in self.clocks:
            send_info(self._graph, camera)
        time.sleep(0.3)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._left.set()
        self._thread.join()


def occupied(grid: OccupancyGrid) -> tuple[int, int]:
    """Cells that hold an obstacle, ahead of the robot and behind it."""
    cells = np.array(grid.data, np.int8).reshape(grid.info.height, grid.info.width) >= 65
    half = grid.info.width // 2
    return int(cells[:, half:].sum()), int(cells[:, :half].sum())


def last(grids: Received, after: float) -> OccupancyGrid:
    """A grid that comes later than so many seconds from now."""
    time.sleep(after)
    grids.clear()
    return wait_until(lambda: grids and grids[-1], "a costmap", timeout=10.0)


@pytest.mark.parametrize("other", [-HOURS, HOURS, None], ids=["late", "early", "zero"])
def test_cameras_hours_apart_share_one_costmap(light_profile: str, other: int | None):
    """Both obstacles stay for as long as they are seen, and no longer."""
    with graph_of(
        "apart" + {-HOURS: "_late", HOURS: "_early"}.get(other, "_zero"),
        light_profile,
        cameras=["front", "rear"],
        **{"front.extrinsics": turned(0), "rear.extrinsics": turned(180), "costmap.decay": 2.0},
    ) as graph:
        grids = graph.listen(f"{graph.base}/costmap", OccupancyGrid, LATCHED)
        with Cameras(graph, {"front": 0, "rear": other}) as cameras:
            wait_until(lambda: grids and all(occupied(grids[-1])), "both obstacles")
            grids.clear()
            time.sleep(5.0)  # more than twice the decay
            seen = [occupied(grid) for grid in list(grids)]
            assert len(seen) > 20
            assert all(ahead > 10 and behind > 10 for ahead, behind in seen)
            stamps = [grid.header.stamp.sec for grid in grids]
            assert max(stamps) - min(stamps) < 10  # all by the node's clock
            for camera in ("front", "rear"):
                found = graph.diagnostics(camera, lambda status: "output: costmap" in status)
                assert (found["output: costmap"], found["level"]) == ("fine", "0")
            # Now one is seen no more.
            del cameras.clocks["rear"]
            assert occupied(last(grids, 4.0))[1] == 0
            assert occupied(grids[-1])[0] > 10
            found = graph.diagnostics("costmap", lambda status: "no image" in status["message"])
            assert "rear cannot be made for" in found["message"]
        # Neither is, and no image comes that would say so.
        assert set(last(grids, 0.0).data) != {-1}
        wait_until(lambda: set(grids[-1].data) == {-1}, "a costmap that knows nothing", 10.0)
        later = graph.listen(f"{graph.base}/costmap", OccupancyGrid, LATCHED)
        wait_until(lambda: later, "the latched costmap")
        assert set(later[-1].data) == {-1}


def test_every_output_has_a_state(light_profile: str):
    with graph_of("states", light_profile, **{"camera.extrinsics": turned(0)}) as graph:
        heat = graph.listen_output("heatmap")
        clouds = graph.listen_output("obstacles", PointCloud2)
        with Cameras(graph, {"camera": 0}):

            def fine(status: dict[str, str]) -> bool:
                return status.get("output: obstacles") == "fine"

            found = graph.diagnostics("camera", fine)
            assert found["level"] == "0"
            assert found["output: heatmap"] == "fine"
            assert found["output: mask"] == "nobody listens"
            assert found["output: costmap"] == "nobody listens"
            assert {f"output: {name}" for name in (
                "heatmap", "mask", "confidence", "uncertainty", "segments", "edited", "overlay",
                "overlay/compressed", "camera_info", "obstacles", "points", "markers", "costmap",
                "detections", "label_info",
            )} <= set(found)  # fmt: skip
            # The camera's calibration becomes one for another image.
            info = CameraInfo(height=HEIGHT, width=WIDTH // 3, k=K)
            graph.publisher("camera/camera_info", CameraInfo).publish(info)
            found = graph.diagnostics("camera", lambda status: status["level"] == "1")
            assert "obstacles cannot be made" in found["message"]
            assert "camera_info is for 21x48, the image is 64x48" in found["output: obstacles"]
            assert found["output: heatmap"] == "fine"
            graph.diagnostics("camera", lambda status: status["level"] == "2", timeout=8.0)
            send_info(graph)
            graph.diagnostics("camera", fine)
        assert heat
        assert clouds
        # The camera falls silent: an error for whoever listens.
        found = graph.diagnostics("camera", lambda status: status["level"] == "2")
        assert "no image on" in found["message"]
        assert "no image on" in found["output: heatmap"]
        for received in (heat, clouds):
            graph.forget(received)
        found = graph.diagnostics("camera", lambda status: status["level"] == "1")
        assert found["output: heatmap"] == "nobody listens"
        assert graph.call(SetBool, "enable", SetBool.Request(data=False)).success
        graph.diagnostics("camera", lambda status: status["level"] == "0")
        again = graph.listen_output("mask")
        found = graph.diagnostics("camera", lambda status: status["level"] == "1")
        assert (found["message"], again) == ("paused", [])


def test_a_listener_without_vision_msgs_is_told(light_profile: str):
    with graph_of("nothing", light_profile) as graph:
        if graph.client.count_publishers(graph.output("detections")):
            pytest.skip("vision_msgs is installed")
        graph.listen(graph.output("detections"), PointCloud2)
        found = graph.diagnostics("camera", lambda s: "vision_msgs" in s["output: detections"])
        assert int(found["level"]) >= 1


def test_a_costmap_left_behind_says_nothing(light_profile: str):
    parameters = {"camera.extrinsics": turned(0), "costmap.decay": 0.0}
    with graph_of("left", light_profile, **parameters) as graph:
        grids = graph.listen(f"{graph.base}/costmap", OccupancyGrid, LATCHED)
        with Cameras(graph, {"camera": 0}):
            wait_until(lambda: grids and max(grids[-1].data) >= 65, "an obstacle")
        assert graph.transition("deactivate")
        wait_until(lambda: set(grids[-1].data) == {-1}, "a costmap that knows nothing", 5.0)
