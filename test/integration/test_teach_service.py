"""~/teach, clicks and ~/undo_lesson in a live graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from geometry_msgs.msg import PointStamped
from sensor_msgs.msg import CameraInfo
from std_srvs.srv import Trigger
from support.lesson_data import GRAVEL, MEADOW, teachable_profile, terrain, with_thing
from support.node_client import image
from support.ros_graph import Graph, values, with_stamp
from support.waiting import wait_until
from visualization_msgs.msg import ImageMarker, Marker

from anomaly_detector_ros.lessons.journal import load_lessons


@pytest.fixture(scope="module")
def profile(light_profile: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(teachable_profile(light_profile, tmp_path_factory.mktemp("teachable")))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "lessons" / "mine.safetensors"


@pytest.fixture
def graph(profile: str, file: Path, request: pytest.FixtureRequest):
    graph = Graph(
        request.node.originalname,
        profile=profile,
        device="cpu",
        lessons=str(file),
        teach_seconds=600.0,
        teach_frames=600,
        max_input_age=0.0,
        **{"camera.height": 1.2},
    )
    wait_until(lambda: graph.state() == "active", "activation", timeout=120.0)
    try:
        yield graph
    finally:
        graph.close()


class Masks:
    """Sends pictures one by one and gives their masks."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self._masks = graph, graph.listen_output("mask")
        self.stamp = (0, 0)

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        self.stamp = self._graph.send(image(picture))
        mask = values(with_stamp(self._masks, self.stamp)) > 0
        del self._masks[:-3]
        return mask


def trigger(graph: Graph, name: str) -> Trigger.Response:
    return graph.call(Trigger, name, Trigger.Request())


def click(
    graph: Graph, topic: str, x: float, y: float, stamp: tuple[int, int] = (0, 0), **more: object
) -> str:
    """Sends a point; what the node says to it."""
    point = PointStamped()
    point.header.stamp.sec, point.header.stamp.nanosec = stamp
    point.header.frame_id = str(more.get("frame", ""))
    point.point.x, point.point.y, point.point.z = x, y, float(more.get("z", 0.0))
    before = graph.node.session.teaching.report()[1].get("last lesson")
    graph.publisher(topic, PointStamped).publish(point)

    def answer() -> str | None:
        said = graph.node.session.teaching.report()[1].get("last lesson")
        return said if said != before else None

    return str(wait_until(answer, f"an answer to a point on {topic}"))


def test_frames_are_taught_and_undone(graph: Graph, file: Path):
    masks = Masks(graph)
    assert masks(terrain(GRAVEL, 99)).mean() > 0.5
    graph.set_parameters(teach_frames=6)
    answer = trigger(graph, "teach")
    assert answer.success, answer.message
    assert str(file) in answer.message
    assert "already teaching" in trigger(graph, "teach").message
    graph.node.session.teaching._collecting.apart = 0.0  # frames as fast as they come
    for seed in range(6):
        masks(terrain(GRAVEL, seed))
    told = graph.diagnostics("node", lambda found: "taught" in found.get("last lesson", ""))
    assert told["lessons"].startswith("1 lessons with")
    assert masks(terrain(GRAVEL, 99)).mean() < 0.1
    assert len(load_lessons(file).entries) == 1
    undone = trigger(graph, "undo_lesson")
    assert undone.success, undone.message
    assert masks(terrain(GRAVEL, 99)).mean() > 0.5
    assert "nothing was taught" in trigger(graph, "undo_lesson").message


def test_a_click_makes_a_segment_nominal_here_and_where_the_camera_has_moved(
    graph: Graph, file: Path
):
    masks = Masks(graph)
    outlines = graph.listen_output("taken", ImageMarker)
    places = [8 + 2 * step for step in range(21)]
    pictures = [with_thing(terrain(MEADOW, left), left) for left in places]
    assert masks(pictures[0])[20:28, 12:20].all()
    accept, reject = (graph.output(name) for name in ("accept", "reject"))
    taken = click(graph, accept, 16.0, 24.0, masks.stamp)
    assert taken.startswith("taken: accept")
    wait_until(lambda: outlines, "an outline")
    assert (outlines[0].header.stamp.sec, outlines[0].header.stamp.nanosec) == masks.stamp
    assert all(7 <= point.x <= 24 and 15 <= point.y <= 32 for point in outlines[0].points)
    for left, picture in zip(places, pictures, strict=True):
        assert masks(picture)[20:28, left + 4 : left + 12].mean() < 0.5
    assert "raises no alarm" in click(graph, accept, 52.0, 24.0)
    assert trigger(graph, "undo_lesson").success
    assert masks(pictures[0])[20:28, 12:20].all()
    # What looks like it is an anomaly again, though it was accepted.
    click(graph, accept, 16.0, 24.0)
    assert not masks(pictures[0])[20:28, 12:20].all()
    assert click(graph, reject, 16.0, 24.0).startswith("taken: reject")
    assert masks(pictures[0])[20:28, 12:20].all()
    assert [each.kind for each in load_lessons(file).entries] == ["accept", "reject"]


def test_a_point_in_space_is_found_in_the_picture(graph: Graph):
    masks = Masks(graph)
    markers = graph.listen(f"{graph.base}/taken", Marker)
    info = CameraInfo(width=72, height=48)
    info.k = [50.0, 0.0, 35.5, 0.0, 50.0, 23.5, 0.0, 0.0, 1.0]
    info.header.frame_id = "optical"
    graph.send_info(info)
    picture = with_thing(terrain(MEADOW, 0), 20)
    wait_until(lambda: graph.node.session.cameras[0]._info is not None, "camera_info")
    assert masks(picture)[20:28, 24:32].all()
    x, y = ((28 - 35.5) * 4 / 50, (24 - 23.5) * 4 / 50)  # 4 m ahead
    taken = click(graph, "/clicked_point", x, y, frame="optical", z=4.0)
    assert taken.startswith("taken: accept")
    assert "(28, 24) of 72x48" in taken
    wait_until(lambda: markers, "a marker")
    assert markers[0].pose.position.z == 4.0
    assert masks(picture)[20:28, 24:32].mean() < 0.5
    assert trigger(graph, "undo_lesson").success
    assert masks(picture)[20:28, 24:32].all()
    # As RViz sends it: in its fixed frame, here where the ray of pixel (28, 30) meets the ground,
    # and with the time of the click by the computer's clock.
    ahead = 1.2 * 50 / (30 - 23.5)
    taken = click(
        graph, "/clicked_point", ahead, 7.5 * ahead / 50, (1_999_999_999, 0), frame="base_link"
    )
    assert "(28, 30) of 72x48" in taken
    assert masks(picture)[20:28, 24:32].mean() < 0.5
    behind = click(graph, "/clicked_point", x, y, frame="optical", z=-4.0)
    assert "in no frame that was shown lately: no camera sees it" in behind
    assert "no transform" in click(graph, "/clicked_point", x, y, frame="elsewhere", z=4.0)


def test_a_point_in_a_frame_that_moves_is_where_it_was_when_it_was_sent(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
):
    """The robot has turned to the left since its camera took the picture."""
    turned, late = 0.3, 1_900_000_000

    def lookup(target: str, source: str, moments: Sequence[int]) -> np.ndarray:
        angle = turned if moments[0] > late * 1_000_000_000 else 0.0
        poses = {"odom": np.eye(4), "base_link": np.eye(4)}
        poses["base_link"][:2, :2] = [
            [np.cos(angle), -np.sin(angle)],
            [np.sin(angle), np.cos(angle)],
        ]
        return np.linalg.inv(poses[target]) @ poses[source]

    monkeypatch.setattr(graph.node.session._transforms, "lookup", lookup)
    masks = Masks(graph)
    info = CameraInfo(width=72, height=48)
    info.k = [50.0, 0.0, 35.5, 0.0, 50.0, 23.5, 0.0, 0.0, 1.0]
    info.header.frame_id = "optical"
    graph.send_info(info)
    wait_until(lambda: graph.node.session.cameras[0]._info is not None, "camera_info")
    assert masks(with_thing(terrain(MEADOW, 0), 20))[20:28, 24:32].all()
    ahead = 1.2 * 50 / (30 - 23.5)
    left = (35.5 - 28) * ahead / 50
    seen = (
        ahead * np.cos(turned) + left * np.sin(turned),
        left * np.cos(turned) - ahead * np.sin(turned),
    )
    assert "(28, 30) of 72x48" in click(
        graph, "/clicked_point", *seen, (late + 1, 0), frame="base_link"
    )
    assert trigger(graph, "undo_lesson").success
    assert masks(with_thing(terrain(MEADOW, 1), 20))[20:28, 24:32].all()
    assert "(28, 30) of 72x48" in click(
        graph, "/clicked_point", ahead, left, (late + 1, 0), frame="odom"
    )


def test_points_that_mean_nothing_change_nothing(graph: Graph, file: Path):
    accept = graph.output("accept")
    assert "no frame of camera was shown yet" in click(graph, accept, 1.0, 1.0)
    masks = Masks(graph)
    masks(with_thing(terrain(MEADOW, 0), 20))
    assert "not in the frame of 72x48" in click(graph, accept, 72.0, 1.0)
    assert "(-1, -1) is not in" in click(graph, accept, -0.5, -0.5)
    assert "not finite" in click(graph, accept, float("nan"), 1.0)
    assert "the frame is gone, it was shown" in click(graph, accept, 24.0, 24.0, (1, 0))
    assert not file.exists()
    # What cannot be written is not in force either.
    file.parent.write_text("no folder")
    assert "not taken: cannot write the lessons" in click(graph, accept, 28.0, 24.0)
    assert masks(with_thing(terrain(MEADOW, 0), 20))[20:28, 24:32].all()
    file.parent.unlink()
    point = PointStamped()
    point.point.x, point.point.y = 28.0, 24.0
    publisher = graph.publisher(accept, PointStamped)
    for _ in range(1000):
        publisher.publish(point)
    assert masks(terrain(MEADOW, 1)).mean() < 0.1
    wait_until(lambda: not graph.node.session.teaching._waiting, "all clicks")
    assert len(load_lessons(file).entries) <= 2
    # The file is another's: it is not overwritten.
    load_lessons(file).save(file)
    assert "another process changed" in trigger(graph, "undo_lesson").message
