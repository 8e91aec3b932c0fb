"""The bag tool on bags written here with rosbags."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from rosbags.interfaces import QosReliability
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from support.bag_files import (
    FRAMES,
    IMAGE,
    QOS,
    START,
    STORAGES,
    STORE,
    camera_info_bytes,
    contents,
    image_bytes,
    pictures,
    write_bag,
)

from anomaly_detector_ros.bags.outputs import OUTPUTS, output_topic
from anomaly_detector_ros.bags.processing import process_bag
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.imaging.messages import compressed_to_rgb
from anomaly_detector_ros.imaging.rendering import encode_jpeg, render
from anomaly_detector_ros.sources.recordings import camera_name, read_images


@pytest.fixture(scope="session")
def detector(light_profile: str) -> Detector:
    return Detector.from_profile(light_profile, device="cpu", offline=True)


@pytest.fixture(params=STORAGES, ids=lambda s: s.name.lower())
def storage(request: pytest.FixtureRequest) -> StoragePlugin:
    return request.param


@pytest.fixture
def source(tmp_path: Path, storage: StoragePlugin) -> Path:
    frames = [image_bytes(picture, i) for i, picture in enumerate(pictures())]
    return write_bag(tmp_path / "in", storage, frames, ["/camera/image_raw"])


def test_output_holds_the_input_and_all_outputs(
    tmp_path: Path, source: Path, storage: StoragePlugin, detector: Detector
) -> None:
    calls: list[tuple[int, int]] = []
    out = tmp_path / "out"
    report = process_bag(source, out, detector, progress=lambda *counts: calls.append(counts))
    assert (report.frames, report.skipped, report.copied) == (FRAMES, 0, 2 * FRAMES + 1)
    assert calls == [(i + 1, FRAMES) for i in range(FRAMES)]
    before, after = contents(source), contents(out)
    assert {topic: after[topic] for topic in before} == before
    assert set(after) - set(before) == {output_topic("camera", name) for name in OUTPUTS}
    suffix = "mcap" if storage is StoragePlugin.MCAP else "db3"
    assert sorted(p.name for p in out.iterdir()) == ["metadata.yaml", f"out.{suffix}"]
    assert not (tmp_path / "out.partial").exists()


def test_outputs_are_the_detectors_with_stamp_and_frame_id(
    tmp_path: Path, source: Path, detector: Detector
) -> None:
    out = tmp_path / "out"
    process_bag(source, out, detector)
    expected = [detector.detect(picture) for picture in pictures()]
    counts = dict.fromkeys(OUTPUTS, 0)
    with AnyReader([out]) as reader:
        for connection, timestamp, raw in reader.messages():
            name = connection.topic.removeprefix("/anomaly_detector/camera/")
            if name not in OUTPUTS:
                continue
            index = counts[name]
            counts[name] += 1
            message = reader.deserialize(raw, connection.msgtype)
            assert timestamp == START + index * 10 + 1
            assert (message.header.stamp.sec, message.header.stamp.nanosec) == (100 + index, index)
            assert message.header.frame_id == "camera_optical"
            picture = pictures()[index]
            if name == "camera_info":
                assert (message.width, list(message.d)) == (51, [0, 1, 2, 3, 4])
            elif name == "overlay/compressed":
                assert message.format == "rgb8; jpeg compressed bgr8"
                jpeg = encode_jpeg(render("overlay", picture, expected[index]))
                assert bytes(message.data) == jpeg
                assert compressed_to_rgb(message).shape == picture.shape
            else:
                array = render(name, picture, expected[index])
                assert (message.height, message.width) == array.shape[:2]
                assert bytes(message.data) == array.tobytes()
    assert counts == dict.fromkeys(OUTPUTS, FRAMES)


def test_quality_of_service_is_kept(tmp_path: Path, source: Path, detector: Detector) -> None:
    out = tmp_path / "out"
    process_bag(source, out, detector, outputs=["mask"])
    with Reader(out) as reader:
        profiles = {c.topic: c.ext.offered_qos_profiles for c in reader.connections}
    assert profiles["/camera/image_raw"] == [QOS]
    assert profiles["/chatter"] == []
    assert profiles["/anomaly_detector/camera/mask"][0].reliability is QosReliability.RELIABLE


def test_chosen_outputs_only(tmp_path: Path, source: Path, detector: Detector) -> None:
    process_bag(source, tmp_path / "out", detector, outputs=["heatmap", "mask"])
    new = set(contents(tmp_path / "out")) - set(contents(source))
    assert new == {"/anomaly_detector/camera/heatmap", "/anomaly_detector/camera/mask"}


def test_own_output_can_be_processed_again(
    tmp_path: Path, source: Path, detector: Detector
) -> None:
    process_bag(source, tmp_path / "once", detector)
    report = process_bag(tmp_path / "once", tmp_path / "twice", detector)
    assert report.cameras[0].topic == "/camera/image_raw"
    assert sorted(report.replaced) == sorted(output_topic("camera", name) for name in OUTPUTS)
    assert contents(tmp_path / "twice") == contents(tmp_path / "once")


def test_single_storage_file_is_a_bag(tmp_path: Path, source: Path, detector: Detector) -> None:
    file = next(p for p in source.iterdir() if p.suffix in (".mcap", ".db3"))
    report = process_bag(file, tmp_path / "out", detector, outputs=["mask"])
    assert report.frames == FRAMES


@pytest.mark.parametrize("bad", ["encoding", "cut", "garbage"])
def test_bad_frames_are_skipped_and_counted(
    tmp_path: Path, storage: StoragePlugin, detector: Detector, bad: str
) -> None:
    frames = [image_bytes(picture, i) for i, picture in enumerate(pictures())]
    frames[1] = {
        "encoding": frames[1].replace(b"rgb8", b"xyz8"),
        "cut": frames[1][: len(frames[1]) // 2],
        "garbage": b"\x00\x01\x00\x00" + b"\xff" * 50,
    }[bad]
    source = write_bag(tmp_path / "in", storage, frames, ["/camera/image_raw"])
    report = process_bag(source, tmp_path / "out", detector, outputs=["mask"])
    assert (report.frames, report.skipped) == (2, 1)
    assert report.first_error
    out = contents(tmp_path / "out")
    assert out["/camera/image_raw"][1][1] == frames[1]
    assert len(out["/anomaly_detector/camera/mask"]) == 2
    with pytest.raises(UserError, match=r"frame 2 of '/camera/image_raw'"):
        process_bag(source, tmp_path / "out2", detector, skip_errors=False)
    assert not (tmp_path / "out2").exists()


def test_damaged_camera_info_costs_nothing_else(
    tmp_path: Path, storage: StoragePlugin, detector: Detector
) -> None:
    with Writer(tmp_path / "in", version=9, storage_plugin=storage) as writer:
        kind = "sensor_msgs/msg/CameraInfo"
        info = writer.add_connection("/camera/camera_info", kind, typestore=STORE)
        images = writer.add_connection("/camera/image_raw", IMAGE, typestore=STORE)
        for index, data in enumerate((b"\0\1\0\0ab", camera_info_bytes(51), b"\0\1\0\0ab")):
            writer.write(info, START + index * 10, data)
            writer.write(images, START + index * 10 + 1, image_bytes(pictures()[index], index))
    report = process_bag(tmp_path / "in", tmp_path / "out", detector, outputs=["camera_info"])
    assert (report.frames, report.skipped, report.copied) == (3, 0, 6)
    assert len(contents(tmp_path / "out")[output_topic("camera", "camera_info")]) == 3


def test_several_image_topics_need_a_choice(
    tmp_path: Path, storage: StoragePlugin, detector: Detector
) -> None:
    frames = [image_bytes(picture, i) for i, picture in enumerate(pictures())]
    source = write_bag(tmp_path / "in", storage, frames, ["/left/image_raw", "/right/image_raw"])
    with pytest.raises(UserError, match=r"--topic /left/image_raw, /right/image_raw"):
        process_bag(source, tmp_path / "out", detector)
    report = process_bag(
        source, tmp_path / "out", detector, topics=["/right/image_raw"], outputs=["mask"]
    )
    assert report.cameras[0].camera == "right"
    assert "/anomaly_detector/right/mask" in contents(tmp_path / "out")


def test_topic_that_is_not_there_or_no_image(
    tmp_path: Path, source: Path, detector: Detector
) -> None:
    with pytest.raises(UserError, match=r"no topic '/nope'.*/camera/image_raw"):
        process_bag(source, tmp_path / "out", detector, topics=["/nope"])
    with pytest.raises(UserError, match=r"'/chatter' is of type std_msgs/msg/String"):
        process_bag(source, tmp_path / "out", detector, topics=["/chatter"])


def test_bag_without_images(tmp_path: Path, storage: StoragePlugin, detector: Detector) -> None:
    source = write_bag(tmp_path / "in", storage, [], [])
    with pytest.raises(UserError, match="holds no camera images"):
        process_bag(source, tmp_path / "out", detector)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_bag(tmp_path: Path, source: Path, detector: Detector, share: float) -> None:
    file = next(p for p in source.iterdir() if p.suffix in (".mcap", ".db3"))
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(UserError, match="truncated") as caught:
        process_bag(source, tmp_path / "out", detector)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out*"))


def test_missing_bag_folder_without_metadata_and_existing_output(
    tmp_path: Path, source: Path, detector: Detector
) -> None:
    with pytest.raises(UserError, match="there is no bag"):
        process_bag(tmp_path / "nope", tmp_path / "out", detector)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="no rosbag2 recording"):
        process_bag(tmp_path / "folder", tmp_path / "out", detector)
    with pytest.raises(UserError, match="exists already"):
        process_bag(source, tmp_path / "folder", detector)
    with pytest.raises(UserError, match="unknown output 'nope'"):
        process_bag(source, tmp_path / "out", detector, outputs=["nope"])


def test_images_are_read_in_order(source: Path) -> None:
    found = list(read_images(source))
    assert [timestamp for timestamp, _ in found] == [START + i * 10 + 1 for i in range(FRAMES)]
    for (_, read), written in zip(found, pictures(), strict=True):
        np.testing.assert_array_equal(read, written)


def test_camera_names() -> None:
    assert camera_name("/camera/image_rect_color") == "camera"
    assert camera_name("/image") == "camera"
    assert camera_name("/a/b/compressed") == "a/b"


def test_types_without_definition_are_copied(tmp_path: Path, detector: Detector) -> None:
    source = tmp_path / "in"
    with Writer(source, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        odd = writer.add_connection("/odd", "my_msgs/msg/Odd", msgdef="int32 x\n", rihs01="x")
        image = writer.add_connection("/camera/image_raw", IMAGE, typestore=STORE)
        writer.write(odd, START, b"\x00\x01\x00\x00\x05\x00\x00\x00")
        writer.write(image, START, image_bytes(pictures()[0], 0))
    report = process_bag(source, tmp_path / "out", detector, outputs=["mask"])
    assert report.copied == 2
    with Reader(tmp_path / "out") as reader:
        found = SimpleNamespace(**{"msgdef": None})
        for connection in reader.connections:
            if connection.topic == "/odd":
                found.msgdef = connection.msgdef.data
    assert found.msgdef == "int32 x\n"
