"""The demo's processes: a player and a recorder around a live node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

import rclpy
from rclpy.context import Context
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.serialization import serialize_message
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from sensor_msgs.msg import CameraInfo, Image
from support.node_client import picture
from support.processes import start_python
from support.ros_graph import DOMAIN, Graph, child_environment
from support.waiting import wait_until

from anomaly_detector_ros.demo.player import messages_of
from anomaly_detector_ros.demo.recorder import BagWriter, camera_topics
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.imaging.rendering import IMAGE_OUTPUTS
from anomaly_detector_ros.runtime.resources import share_dir
from anomaly_detector_ros.sources import unpacking
from anomaly_detector_ros.sources.frames import find_sources
from anomaly_detector_ros.sources.recordings import IMAGE, typestore
from anomaly_detector_ros.sources.tally import Tally

PLAYER = [sys.executable, "-m", "anomaly_detector_ros.demo.player"]
RECORDER = [sys.executable, "-m", "anomaly_detector_ros.demo.recorder"]


@pytest.fixture
def node(light_profile: str) -> Iterator[Graph]:
    graph = Graph("played", profile=light_profile, device="cpu", max_input_age=5.0)
    wait_until(lambda: graph.state() == "active", "activation", timeout=120.0)
    yield graph
    graph.close()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        cv2.imwrite(str(folder / f"{number}.png"), picture(60 + number, 80))
    return folder


def environment() -> dict[str, str]:
    profile = str(share_dir("config") / "fastdds.xml")
    return {
        **child_environment(),
        "FASTRTPS_DEFAULT_PROFILES_FILE": profile,
        "FASTDDS_DEFAULT_PROFILES_FILE": profile,
    }


def play(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PLAYER, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextmanager
def recording(bag: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A recorder that records; killed if it still runs at the end."""
    process = start_python(
        *(*RECORDER[1:], bag, *arguments),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        assert process.stdout.readline() == "recording\n"
        yield process
    finally:
        process.kill()


def end(recorder: subprocess.Popen[str]) -> None:
    recorder.send_signal(signal.SIGTERM)
    output, _ = recorder.communicate(timeout=20)
    assert recorder.returncode == 0, output


def test_pictures_to_node_to_bag(node: Graph, pictures: Path, tmp_path: Path):
    bag, summary_file = tmp_path / "out", tmp_path / "summary.json"
    detector = "/played/anomaly_detector"
    arguments = ("--summary", str(summary_file), "--node", detector, "--wait", "60")
    with recording(bag, *arguments) as recorder:
        # Each learns of the other by itself; what the node sends before it does is lost.
        mask = f"{detector}/camera/mask"
        wait_until(lambda: node.client.count_subscribers(mask), "the recorder")
        played = play(
            str(pictures),
            *("--camera", "played/camera", "--subscribers", "2"),
            *("--rate", "5", "--count", "5"),
        )
        assert played.returncode == 0, played.stderr
        assert "played 5 images" in played.stdout
        # Fast DDS prints what it cannot make of its profile.
        assert "XML" not in played.stdout + played.stderr
        wait_until(lambda: node.counts()["pending"] == 0, "the last image")
        time.sleep(0.5)
        assert not bag.exists()
        end(recorder)
    assert not list(tmp_path.glob("*.partial"))

    topics = json.loads(summary_file.read_text())["topics"]
    assert topics["/played/camera/image_raw"]["messages"] == 5
    assert 0 < topics["/played/camera/image_raw"]["latency"]["max"] < 5
    counts = node.counts()
    masks = topics["/played/anomaly_detector/camera/mask"]["messages"]
    assert masks == counts["processed"] >= 1
    with AnyReader([bag]) as reader:
        found = {connection.topic: connection.msgcount for connection in reader.connections}
        stamps = [
            (message.header.stamp.sec, message.header.stamp.nanosec, message.header.frame_id)
            for connection, _, data in reader.messages()
            if connection.topic == "/played/camera/image_raw"
            for message in [reader.deserialize(data, connection.msgtype)]
        ]
    assert found["/played/camera/image_raw"] == len(set(stamps)) == 5
    assert found["/played/anomaly_detector/camera/mask"] == masks
    assert stamps[0][2] == "camera_optical_frame"

    again = tmp_path / "again"
    with recording(again, "--camera", "replayed", "--node", "/anomaly_detector") as process:
        played = play(str(bag), "--camera", "replayed", "--rate", "20")
        assert played.returncode == 0, played.stderr
        end(process)
    with AnyReader([again]) as reader:
        counts = {connection.topic: connection.msgcount for connection in reader.connections}
    assert counts["/replayed/image_raw"] == counts["/replayed/camera_info"] == 5


def test_a_short_message_costs_nothing_else(tmp_path: Path):
    bag, summary_file = tmp_path / "out", tmp_path / "summary.json"
    context = Context()
    rclpy.init(context=context, domain_id=DOMAIN)
    try:
        node = Node("short", context=context)
        sender = node.create_publisher(CameraInfo, "/camera/camera_info", 10)
        with recording(bag, "--summary", str(summary_file)) as process:
            wait_until(sender.get_subscription_count, "the recorder")
            for data in (b"\0\1\0\0\1\0", serialize_message(CameraInfo(width=3))):
                sender.publish(data)
            wait_until(lambda: sender.wait_for_all_acked(Duration(seconds=5)), "the arrival")
            time.sleep(0.5)
            end(process)
    finally:
        rclpy.try_shutdown(context=context)
    assert json.loads(summary_file.read_text())["topics"]["/camera/camera_info"]["messages"] == 1
    with AnyReader([bag]) as reader:
        (message,) = [reader.deserialize(raw, c.msgtype) for c, _, raw in reader.messages()]
    assert message.width == 3


def test_a_recording_that_fails_keeps_what_came_apart(tmp_path: Path):
    def fail(bag: BagWriter) -> None:
        bag.add("/a", "sensor_msgs/msg/CameraInfo")
        bag.write("/a", 1, serialize_message(CameraInfo(width=3)))
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), BagWriter(tmp_path / "out") as bag:
        fail(bag)
    assert not (tmp_path / "out").exists()
    with AnyReader([tmp_path / "out.partial" / "out"]) as reader:
        assert reader.message_count == 1


def test_player_keeps_within_the_readers_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(unpacking, "MAX_MESSAGE_BYTES", 5000)
    store = typestore()
    writer = Writer(tmp_path / "in", version=8, storage_plugin=StoragePlugin.MCAP)
    writer.set_compression(CompressionMode.MESSAGE, CompressionFormat.ZSTD)
    with writer:
        topic = writer.add_connection("/camera/image_raw", IMAGE, typestore=store)
        writer.write(topic, 1, serialize_message(Image(data=bytes(6000))))
    with pytest.raises(UserError, match="unpacks to more than 5000 bytes"):
        list(messages_of(find_sources([tmp_path / "in"]), Tally(stop=True)))


def test_images_wait_for_the_answer_to_the_one_before(node: Graph, tmp_path: Path):
    """Of a picture that the node drops, and so never answers, the player hears otherwise."""
    with Writer(tmp_path / "in", version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        topic = writer.add_connection("/camera/image_raw", IMAGE, typestore=typestore())
        for number, encoding in enumerate(["rgb8", "none_known", "rgb8", "rgb8"]):
            image = Image(height=60, width=80, step=240, encoding=encoding, data=bytes(60 * 240))
            writer.write(topic, number, serialize_message(image))
    played = play(str(tmp_path / "in"), "--answers", "/played/anomaly_detector")
    assert played.returncode == 0, played.stderr
    counts = node.counts()
    assert (counts["received"], counts["processed"], counts["bad"]) == (4, 3, 1)


def test_node_publishes_every_output_on_the_recorded_topics():
    topics = camera_topics("front", "/robot/anomaly_detector", "compressed")
    assert topics["/robot/front/image_raw/compressed"] == "sensor_msgs/msg/CompressedImage"
    for name in IMAGE_OUTPUTS:
        assert topics[f"/robot/anomaly_detector/front/{name}"] == "sensor_msgs/msg/Image"


def test_player_gives_up_without_a_subscriber(pictures: Path):
    ended = play(str(pictures), "--camera", "alone", "--wait", "0.5")
    assert ended.returncode == 1
    assert ended.stderr.startswith("player: 0 of 1 subscribers")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("what", ["nothing", "empty"])
def test_player_names_what_is_missing(tmp_path: Path, what: str):
    (tmp_path / "empty").mkdir()
    ended = play(str(tmp_path / what))
    assert ended.returncode == 1
    assert what in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_recorder_keeps_what_exists(tmp_path: Path):
    (tmp_path / "out").mkdir()
    ended = subprocess.run(
        [*RECORDER, str(tmp_path / "out"), "--camera", "camera"],
        env={**os.environ, **environment()},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1
    assert "exists already" in ended.stderr
    assert not list((tmp_path / "out").iterdir())


def test_recorder_says_when_there_is_no_node_to_record(tmp_path: Path):
    ended = subprocess.run(
        [*RECORDER, str(tmp_path / "bag"), "--camera", "camera", "--wait", "1"],
        env={**environment(), "ROS_DOMAIN_ID": "101"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 1
    assert "nobody publishes '/anomaly_detector/camera/heatmap' after 1 s" in ended.stderr
    assert "recording" not in ended.stdout
    assert not (tmp_path / "bag").exists()
