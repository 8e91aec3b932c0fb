"""The demo's processes: a player and a recorder around a live node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

from ros_graph import Graph, child_environment, picture, wait_until
from rosbags.highlevel import AnyReader

from anomaly_detector_ros.imaging.rendering import IMAGE_OUTPUTS
from anomaly_detector_ros.runtime.resources import share_dir

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


def test_pictures_to_node_to_bag(node: Graph, pictures: Path, tmp_path: Path):
    bag, summary_file = tmp_path / "out", tmp_path / "summary.json"
    recorder = subprocess.Popen(
        [
            *(*RECORDER, str(bag), "--summary", str(summary_file)),
            *("--camera", "camera", "--node", "/played/anomaly_detector"),
        ],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert recorder.stdout.readline() == "recording\n"
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
        recorder.send_signal(signal.SIGTERM)
        output, _ = recorder.communicate(timeout=20)
    finally:
        recorder.kill()
    assert recorder.returncode == 0, output
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
    stopper = subprocess.Popen(
        [
            *(*RECORDER, str(again), "--frames", "5"),
            *("--topic", "/replayed/image_raw=sensor_msgs/msg/Image"),
        ],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        played = play(str(bag), "--camera", "replayed", "--rate", "20")
        assert played.returncode == 0, played.stderr
        assert stopper.wait(20) == 0  # by itself, after 5 frames
    finally:
        stopper.kill()
    with AnyReader([again]) as reader:
        assert reader.message_count == 5


def test_node_publishes_every_output_on_the_recorded_topics():
    from anomaly_detector_ros.demo.recorder import camera_topics

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
