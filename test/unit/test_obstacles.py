"""From a camera's messages to points and the costmap, or one line that says why not."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.mapping_scenes import HEIGHT, WIDTH, board_outline, camera_info, draw

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.mapping.depth import DepthBuffer, serialised_stamp
from anomaly_detector_ros.mapping.obstacle_finder import ObstacleFinder, Obstacles
from anomaly_detector_ros.mapping.obstacles import ObstacleSettings
from anomaly_detector_ros.mapping.poses import (
    Extrinsics,
    Taken,
    from_quaternion,
    mounted,
    transform,
)
from anomaly_detector_ros.ros.transforms import NoTransforms

POSE = mounted(1.2, pitch=0.18)
BOARD = (5.0, 0.3, 0.5, 1.0)
HEAT = np.full((HEIGHT, WIDTH), 0.9, np.float32)


def taken(stamp: float = 100.0) -> Taken:
    return Taken("optical", (round(stamp * 1e9),))


def depth_message(metres: np.ndarray) -> SimpleNamespace:
    height, width = metres.shape
    data = metres.astype("<f4").tobytes()
    return SimpleNamespace(
        height=height, width=width, encoding="32FC1", is_bigendian=0, step=4 * width, data=data
    )


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    return draw("pinhole", POSE, board_outline(*BOARD))


@pytest.fixture(scope="module")
def finder() -> ObstacleFinder:
    return ObstacleFinder()


KNOWN = Extrinsics(NoTransforms(), "base_link", height=1.2, pitch=0.18)
UNKNOWN = Extrinsics(NoTransforms(), "base_link")


def find(
    finder: ObstacleFinder,
    mask: np.ndarray,
    depth: Any = None,
    extrinsics: Extrinsics = KNOWN,
    source: str = "auto",
    **more: Any,
) -> Obstacles:
    info = more.pop("info", camera_info())
    settings = ObstacleSettings(source=source)
    return finder.find(info, depth, mask, HEAT, taken(), extrinsics, settings, **more)


def test_ground_without_depth(finder, mask):
    found = find(finder, mask, free=True)
    assert (found.problem, found.source) == ("", "ground")
    seen = transform(found.pose, found.points)
    assert np.abs(seen[:, 0] - 5.0).max() < 0.1
    assert len(found.free) > 1000


def test_depth_where_there_is_one_and_needs_no_pose(finder, mask):
    depth = depth_message(np.full((HEIGHT, WIDTH), 4.0))
    found = find(finder, mask, depth, UNKNOWN, free=True, cloud=True)
    assert (found.problem, found.source, found.pose) == ("", "depth", None)
    np.testing.assert_allclose(found.points[:, 2], 4.0)
    assert len(found.free) == 0
    assert found.cloud.shape == (HEIGHT, WIDTH, 4)
    assert find(finder, mask, depth).cloud is None


def test_source_is_the_users_choice(finder, mask):
    depth = depth_message(np.full((HEIGHT, WIDTH), 4.0))
    assert find(finder, mask, depth, source="ground").source == "ground"
    assert find(finder, mask, depth, source="depth").source == "depth"
    assert "depth_tolerance" in find(finder, mask, source="depth").problem
    assert "auto, depth, ground" in find(finder, mask, source="stereo").problem


def test_no_anomaly_is_no_problem(finder):
    found = find(finder, np.zeros((HEIGHT, WIDTH), bool))
    assert found.problem == ""
    assert found.points.shape == (0, 4)


def test_the_rays_are_kept_while_the_calibration_stays(finder, mask):
    find(finder, mask)
    rays = finder._model.rays
    find(finder, mask)
    assert finder._model.rays is rays
    other = camera_info()
    other.k[0] *= 2.0
    assert np.abs(find(finder, mask, info=other).points).max() > 0.0
    assert finder._model.rays is not rays


def test_settings_of_the_drivers_reach_depth_and_camera(finder, mask):
    depth = depth_message(np.full((HEIGHT, WIDTH), 400.0))
    settings = ObstacleSettings(depth_unit=0.01)
    found = finder.find(camera_info(), depth, mask, HEAT, taken(), KNOWN, settings)
    np.testing.assert_allclose(found.points[:, 2], 4.0)
    bent = camera_info(
        "plumb_bob", p=camera_info().k[:3] + [0.0] + camera_info().k[3:6] + [0.0] * 5
    )
    straight = ObstacleSettings(rectified=True)
    found = ObstacleFinder().find(bent, None, mask, HEAT, taken(), KNOWN, straight)
    expected = find(ObstacleFinder(), mask)
    np.testing.assert_array_equal(found.points, expected.points)


@pytest.mark.parametrize(
    ("info", "depth", "reason"),
    [
        (None, None, "no camera_info"),
        (camera_info(k=[0.0] * 9), None, "calibrate"),
        (camera_info(width=640), None, "camera_info is for 640x720, the image is 1280x720"),
        (camera_info(distortion_model="\n\0"), None, "distortion model"),
        (SimpleNamespace(), None, "AttributeError"),
        (camera_info(d="abc"), None, "ValueError"),
        (camera_info(), depth_message(np.ones((360, 640))), "register the depth"),
        (camera_info(), SimpleNamespace(encoding=3), "depth image"),
        (camera_info(), SimpleNamespace(encoding="16UC1"), "AttributeError"),
    ],
)
def test_bad_messages_become_one_line(finder, mask, info, depth, reason: str):
    found = find(finder, mask, depth, info=info, cloud=True)
    assert reason in found.problem
    assert "\n" not in found.problem
    assert len(found.points) == len(found.free) == 0
    assert found.cloud is None


def test_without_any_pose_the_line_says_what_to_set(mask):
    found = find(ObstacleFinder(), mask, extrinsics=UNKNOWN)
    assert "'optical' to 'base_link': tf2_ros is not installed" in found.problem
    assert "height, roll and pitch" in found.problem


class Table:
    """Transforms as TF would give them, by target and source."""

    def __init__(self, **poses: np.ndarray) -> None:
        self.poses = poses

    def lookup(self, target: str, source: str, moments: Any) -> np.ndarray:
        try:
            return self.poses[f"{target}_from_{source}"]
        except KeyError:
            raise UserError(f"no transform from '{source}' to '{target}'") from None

    def close(self) -> None: ...


def test_pose_from_parameters_goes_before_tf():
    table = Table(base_from_optical=mounted(0.5))
    assert Extrinsics(table, "base").pose(taken())[2, 3] == 0.5
    assert Extrinsics(table, "base", height=1.0).pose(taken())[2, 3] == 1.0
    matrix = mounted(1.7, 0.1, 0.2)
    given = Extrinsics(table, "base", height=1.0, matrix=matrix.reshape(-1).tolist())
    np.testing.assert_allclose(given.pose(taken()), matrix)
    with pytest.raises(UserError, match="16 numbers"):
        Extrinsics(table, "base", matrix=[1.0, 2.0])


def test_a_frame_that_is_the_cameras_body_has_its_axes_turned():
    body = np.eye(4)
    body[2, 3] = 1.2  # looks along the robot's x
    table = Table(base_from_optical=body)
    found = Extrinsics(table, "base", body=True).pose(taken())
    np.testing.assert_allclose(found, mounted(1.2), atol=1e-12)
    given = Extrinsics(table, "base", height=0.7, body=True).pose(taken())
    np.testing.assert_allclose(given, mounted(0.7))  # parameters are of the optical frame


# -- stamps of depth -------------------------------------------------------------------------------


def serialised(stamp: int, order: str = "<") -> bytes:
    sec, nanosec = divmod(stamp, 1_000_000_000)
    return bytes([0, order == "<", 0, 0]) + struct.pack(f"{order}iI", sec, nanosec) + b"rest"


@pytest.mark.parametrize("order", ["<", ">"])
def test_stamp_is_read_without_deserialising(order: str):
    stamp = 1_700_000_123_456_789_012
    assert serialised_stamp(serialised(stamp, order)) == stamp
    assert serialised_stamp(b"\0\1\0\0") is None
    assert serialised_stamp(b"\0\7" + bytes(20)) is None


def test_stamp_of_a_message_that_rclpy_serialised():
    serialization = pytest.importorskip("rclpy.serialization", reason="rclpy is not installed")
    from sensor_msgs.msg import Image

    message = Image(height=1, width=1, encoding="16UC1", step=2, data=[1, 2])
    message.header.stamp.sec, message.header.stamp.nanosec = 12, 345
    data = serialization.serialize_message(message)
    assert serialised_stamp(data) == 12_000_000_345


def test_the_closest_depth_within_tolerance_is_taken():
    buffer = DepthBuffer(0.05)
    second = 1_000_000_000
    for stamp in (second, second + 33_000_000, second + 66_000_000):
        buffer.put(serialised(stamp))
    buffer.watch(second + 40_000_000)
    assert serialised_stamp(buffer.matched()) == second + 33_000_000
    buffer.watch(second + 120_000_000)
    assert buffer.matched() is None
    assert buffer.matched() is None  # nothing is watched


def test_depth_that_comes_during_detection_counts():
    buffer = DepthBuffer(0.05)
    second = 1_000_000_000
    buffer.put(serialised(second - 40_000_000))
    buffer.watch(second)
    buffer.put(b"short")
    buffer.put(serialised(second + 2_000_000))
    for frame in range(50):  # newer ones, long beyond the history
        buffer.put(serialised(second + 2_000_000 + 33_000_000 * (frame + 1)))
    assert serialised_stamp(buffer.matched()) == second + 2_000_000


def test_a_bag_that_starts_again_matches_again():
    buffer = DepthBuffer(0.02)
    second = 1_000_000_000
    buffer.put(serialised(100 * second))
    buffer.put(serialised(5 * second))
    buffer.watch(5 * second)
    assert serialised_stamp(buffer.matched()) == 5 * second
    buffer.clear()
    buffer.watch(5 * second)
    assert buffer.matched() is None


# -- messages --------------------------------------------------------------------------------------


def ros_header(stamp: float):
    messages = pytest.importorskip("std_msgs.msg", reason="no ROS messages are installed")
    made = messages.Header(frame_id="optical")
    made.stamp.sec, made.stamp.nanosec = int(stamp), round(stamp % 1 * 1e9)
    return made


def test_cloud_message_is_readable_by_others():
    stamped = ros_header(3.5)
    from rosbags.typesys import Stores, get_typestore

    from anomaly_detector_ros.ros.publishers import cloud_message

    points = np.arange(20, dtype=np.float32).reshape(5, 4)
    message = cloud_message(stamped, points)
    assert (message.height, message.width, message.is_dense) == (1, 5, True)
    assert [f.name for f in message.fields] == ["x", "y", "z", "intensity"]
    assert [(f.offset, f.datatype, f.count) for f in message.fields] == [
        (0, 7, 1),
        (4, 7, 1),
        (8, 7, 1),
        (12, 7, 1),
    ]
    from rclpy.serialization import serialize_message

    store = get_typestore(Stores.ROS2_JAZZY)
    read = store.deserialize_cdr(serialize_message(message), "sensor_msgs/msg/PointCloud2")
    assert (read.header.frame_id, read.header.stamp.sec) == ("optical", 3)
    np.testing.assert_array_equal(read.data.view("<f4").reshape(5, 4), points)
    image = cloud_message(stamped, np.zeros((4, 6, 4), np.float32))
    assert (image.height, image.width, image.row_step, image.is_dense) == (4, 6, 96, False)
    assert len(image.data) == 4 * 96
    assert cloud_message(stamped, np.zeros((0, 4), np.float32)).width == 0


NOW = 50_000_000_000


def costmap_of(transforms: Any, publisher: Any = None, **settings: Any):
    pytest.importorskip("rclpy", reason="rclpy is not installed")
    from anomaly_detector_ros.ros.costmap import Costmap
    from anomaly_detector_ros.ros.output import Output
    from anomaly_detector_ros.ros.parameters import CostmapParameters

    return Costmap(Output(publisher), transforms, "base_link", 0.0, CostmapParameters(**settings))


def test_costmap_places_what_a_moving_robot_sees(finder, mask):
    table = Table()
    costmap = costmap_of(table, size=20.0, resolution=0.2)
    found = find(finder, mask, free=True)
    # The robot stands at (10, -4) and looks along the fixed frame's y.
    half = np.sqrt(0.5)
    table.poses["odom_from_base_link"] = from_quaternion((10, -4, 0), (0, 0, half, half))
    message = costmap.add(NOW, taken(50.0), found)
    assert message.header.frame_id == "odom"
    assert message.header.stamp.sec == 50
    cells = np.array(message.data, np.int8).reshape(message.info.height, message.info.width)
    origin = message.info.origin.position
    assert (origin.x, origin.y) == pytest.approx((0.0, -14.0))
    rows, columns = np.nonzero(cells >= 65)
    x, y = origin.x + (columns + 0.5) * 0.2, origin.y + (rows + 0.5) * 0.2
    assert np.abs(y - 1.0).max() < 0.25  # 5 m ahead of the robot
    assert np.abs(x - 9.7).max() < 0.5  # 0.3 m to its left
    assert (cells == -1).any()
    assert ((cells >= 0) & (cells < 50)).sum() > 100
    assert len(message.data) == message.info.height * message.info.width


def test_costmap_says_what_is_missing(finder, mask):
    costmap = costmap_of(NoTransforms())
    found = find(finder, mask, free=True)
    with pytest.raises(UserError, match=r"set costmap\.frame to 'base_link'"):
        costmap.add(NOW, taken(50.0), found)
    robot = costmap_of(NoTransforms(), frame="base_link")
    under = costmap_of(NoTransforms(), frame="base_link", max_height=-0.5)
    assert max(robot.add(NOW, taken(50.0), found).data) == 70
    assert max(under.add(NOW, taken(50.0), found).data) == 40
    with pytest.raises(UserError, match=r"raise costmap\.resolution"):
        costmap_of(NoTransforms(), size=200.0, resolution=0.05)


class Grids:
    """A publisher that keeps what it sends."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def get_subscription_count(self) -> int:
        return 1

    def publish(self, message: Any) -> None:
        self.sent.append(message)


def test_where_no_image_comes_the_costmap_says_that_it_knows_no_more(finder, mask, monkeypatch):
    grids = Grids()
    costmap = costmap_of(NoTransforms(), grids, frame="base_link", decay=4.0)
    monkeypatch.setattr("anomaly_detector_ros.ros.costmap.REFRESH", 0.0)
    share = costmap.share()
    share.send(costmap.add(NOW, taken(50.0), find(finder, mask, free=True)))
    known = [sum(cell >= 0 for cell in grids.sent[-1].data)]
    for seconds in (1, 3, 5, 7):
        costmap.refresh(NOW + seconds * 1_000_000_000)
        known.append(sum(cell >= 0 for cell in grids.sent[-1].data))
    # It fades, is gone after 4 s, and then nothing more is sent.
    assert known[0] == known[1] == known[2] > 100
    assert known[3:] == [0, 0]
    assert len(grids.sent) == 4
    assert grids.sent[-1].header.stamp.sec == 55


def test_a_costmap_given_up_says_so(finder, mask):
    grids = Grids()
    costmap = costmap_of(NoTransforms(), grids, frame="base_link")
    costmap.clear(NOW)
    assert grids.sent == []  # nothing was said, so there is nothing to take back
    costmap.share().send(costmap.add(NOW, taken(50.0), find(finder, mask, free=True)))
    costmap.clear(NOW)
    assert set(grids.sent[-1].data) == {-1}


def test_cameras_whose_clocks_differ_share_the_costmap(finder, mask):
    costmap = costmap_of(NoTransforms(), frame="base_link")
    found = find(finder, mask, free=True)
    hours = 3 * 3600 * 1_000_000_000
    for step in range(3):
        now = NOW + step * 1_000_000_000
        # The one's moments are of the node's clock, the other's stamp is three hours late.
        costmap.add(now, Taken("optical", (now,)), found)
        grid = costmap.add(now, Taken("optical", (now - hours, now)), found)
    assert max(grid.data) == 97  # of both


def test_tf_of_a_node_is_followed():
    tf2_ros = pytest.importorskip("tf2_ros", reason="tf2_ros is not installed")
    import rclpy
    from geometry_msgs.msg import TransformStamped
    from rclpy.context import Context
    from rclpy.executors import SingleThreadedExecutor

    from anomaly_detector_ros.ros.transforms import make_transforms

    context = Context()
    rclpy.init(args=[], context=context)
    try:
        node = rclpy.create_node("tf_test", context=context)
        transforms = make_transforms(node)
        sent = TransformStamped()
        sent.header.frame_id, sent.child_frame_id = "base_link", "optical"
        sent.transform.translation.z, sent.transform.rotation.w = 1.5, 1.0
        broadcaster = tf2_ros.StaticTransformBroadcaster(node)
        broadcaster.sendTransform(sent)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        for _ in range(20):
            executor.spin_once(timeout_sec=0.1)
        pose = transforms.lookup("base_link", "optical", (1_000_000_000,))
        assert pose[2, 3] == 1.5
        with pytest.raises(UserError, match="no transform from 'nowhere'"):
            transforms.lookup("base_link", "nowhere", (1_000_000_000,))
        transforms.close()
        node.destroy_node()
    finally:
        rclpy.try_shutdown(context=context)
