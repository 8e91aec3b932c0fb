"""Bags that are compressed, that play in the usual tools, and bags that nobody should trust."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import CompressionMode, Reader, StoragePlugin, Writer
from support.bag_files import (
    COMPRESSED,
    FRAMES,
    IMAGE,
    QOS,
    START,
    STORAGES,
    STORE,
    TYPES,
    camera_info_bytes,
    compressed_bytes,
    contents,
    image_bytes,
    pictures,
    write_bag,
)

from anomaly_detector_ros.bags.outputs import output_topic
from anomaly_detector_ros.bags.processing import process_bag
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.imaging.images import ImageError
from anomaly_detector_ros.sources import recordings as bag_reader
from anomaly_detector_ros.sources import unpacking
from anomaly_detector_ros.sources.recordings import (
    BagReader,
    choose_topic,
    read_frames,
    read_images,
)
from anomaly_detector_ros.sources.unpacking import unpack, zstd

METADATA = "rosbag2_bagfile_information"


@pytest.fixture(scope="session")
def detector(light_profile: str) -> Detector:
    return Detector.from_profile(light_profile, device="cpu", offline=True)


@pytest.fixture(params=STORAGES, ids=lambda s: s.name.lower())
def storage(request: pytest.FixtureRequest) -> StoragePlugin:
    return request.param


def edit_metadata(bag: Path, **changes: object) -> None:
    file = bag / "metadata.yaml"
    content = yaml.safe_load(file.read_text())
    content[METADATA].update(changes)
    file.write_text(yaml.safe_dump(content))


def raw_frames() -> list[bytes]:
    return [image_bytes(picture, i) for i, picture in enumerate(pictures())]


# -- what is read ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [CompressionMode.FILE, CompressionMode.MESSAGE])
def test_compressed_bags(
    tmp_path: Path, storage: StoragePlugin, detector: Detector, mode: CompressionMode
) -> None:
    topics = ["/camera/image_raw"]
    plain = write_bag(tmp_path / "plain", storage, raw_frames(), topics)
    packed = write_bag(tmp_path / "packed", storage, raw_frames(), topics, mode)
    for (_, found), picture in zip(read_images(packed), pictures(), strict=True):
        np.testing.assert_array_equal(found, picture)
    process_bag(plain, tmp_path / "a", detector, outputs=["mask", "heatmap"])
    process_bag(packed, tmp_path / "b", detector, outputs=["mask", "heatmap"])
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_compressed_chunks(tmp_path: Path) -> None:
    bag = write_bag(
        tmp_path / "in", StoragePlugin.MCAP, raw_frames(), ["/c/image"], CompressionMode.STORAGE
    )
    assert len(list(read_images(bag))) == FRAMES


def test_raw_and_compressed_cameras_in_one_pass(
    tmp_path: Path, storage: StoragePlugin, detector: Detector
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    with Writer(source, version=9, storage_plugin=storage) as writer:
        front = writer.add_connection("/front/image_raw", IMAGE, typestore=STORE)
        rear = writer.add_connection("/rear/image_raw/compressed", COMPRESSED, typestore=STORE)
        info = writer.add_connection(
            "/rear/camera_info", "sensor_msgs/msg/CameraInfo", typestore=STORE
        )
        for index, picture in enumerate(pictures()):
            writer.write(front, START + index * 10, image_bytes(picture, index))
            writer.write(info, START + index * 10 + 1, camera_info_bytes(51))
            writer.write(rear, START + index * 10 + 2, compressed_bytes(picture, index + 50))
    topics = ["/front/image_raw", "/rear/image_raw/compressed"]
    report = process_bag(source, out, detector, topics=topics, outputs=["heatmap", "camera_info"])
    assert [(c.camera, c.frames, c.skipped) for c in report.cameras] == [
        ("front", FRAMES, 0),
        ("rear", FRAMES, 0),
    ]
    expected = {
        "front": [detector.detect(p) for _, p in read_images(source, topics[0])],
        "rear": [detector.detect(p) for _, p in read_images(source, topics[1])],
    }
    counts = dict.fromkeys(expected, 0)
    with AnyReader([out]) as reader:
        for connection, timestamp, raw in reader.messages():
            for camera, found in expected.items():
                if connection.topic == output_topic(camera, "heatmap"):
                    message = reader.deserialize(raw, connection.msgtype)
                    index = counts[camera]
                    counts[camera] += 1
                    assert message.header.stamp.sec == 100 + index + 50 * (camera == "rear")
                    assert timestamp == START + index * 10 + 2 * (camera == "rear")
                    assert bytes(message.data) == found[index].heatmap.tobytes()
        assert counts == dict.fromkeys(expected, FRAMES)
        names = {connection.topic for connection in reader.connections}
    assert output_topic("rear", "camera_info") in names
    assert output_topic("front", "camera_info") not in names


def test_two_topics_of_one_camera(
    tmp_path: Path, storage: StoragePlugin, detector: Detector
) -> None:
    topics = ["/camera/image_raw", "/camera/image_rect"]
    source = write_bag(tmp_path / "in", storage, raw_frames(), topics)
    with pytest.raises(UserError, match="are of one camera, 'camera': choose one"):
        process_bag(source, tmp_path / "out", detector, topics=topics)
    report = process_bag(
        source, tmp_path / "out", detector, topics=topics[:1] * 2, outputs=["mask"]
    )
    assert report.frames == FRAMES


def test_frames_with_stride_and_bad_ones(tmp_path: Path, storage: StoragePlugin) -> None:
    frames = raw_frames()
    frames[2] = frames[2].replace(b"rgb8", b"xyz8")
    source = write_bag(tmp_path / "in", storage, frames, ["/camera/image_raw"])
    (first, picture), (second, error) = read_frames(source, stride=2)
    assert (first, second) == (START + 1, START + 21)
    np.testing.assert_array_equal(picture, pictures()[0])
    assert isinstance(error, ImageError)


# -- what plays it ---------------------------------------------------------------------------------


def test_latched_topics_schemas_and_metadata_play_elsewhere(
    tmp_path: Path, storage: StoragePlugin, detector: Detector
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    transforms = "tf2_msgs/msg/TFMessage"
    with Writer(source, version=9, storage_plugin=storage) as writer:
        static = writer.add_connection(
            "/tf_static", transforms, typestore=STORE, offered_qos_profiles=[QOS, QOS]
        )
        image = writer.add_connection("/camera/image_raw", IMAGE, typestore=STORE)
        message = TYPES[transforms](transforms=[])
        writer.write(static, START, STORE.serialize_cdr(message, transforms))
        writer.write(image, START + 1, image_bytes(pictures()[0], 0))
    process_bag(source, out, detector, outputs=["mask", "overlay/compressed"])
    described = yaml.safe_load((out / "metadata.yaml").read_text())[METADATA]
    assert described["version"] == 8  # the newest that Humble reads
    assert described["storage_identifier"] == storage.name.lower()
    assert described["message_count"] == 4
    assert [(out / path).is_file() for path in described["relative_file_paths"]] == [True]
    by_topic = {
        each["topic_metadata"]["name"]: each["topic_metadata"]
        for each in described["topics_with_message_count"]
    }
    # In version 8 the profiles are YAML in a text, with rmw's numbers.
    profiles = yaml.safe_load(by_topic["/tf_static"]["offered_qos_profiles"])
    assert [profile["durability"] for profile in profiles] == [1, 1]
    (mask,) = yaml.safe_load(by_topic[output_topic("camera", "mask")]["offered_qos_profiles"])
    assert (mask["reliability"], mask["durability"], mask["history"], mask["depth"]) == (1, 2, 1, 1)
    assert all(meta["type_description_hash"].startswith("RIHS01_") for meta in by_topic.values())
    with Reader(out) as reader:
        for connection in reader.connections:
            assert (
                connection.msgdef.data
                == STORE.generate_msgdef(connection.msgtype, ros_version=2)[0]
            )


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../other/in.mcap", "/etc/passwd", "a/../../in.mcap", "..\\in.mcap", ".."]
)
def test_files_outside_the_bag_are_refused(
    tmp_path: Path, storage: StoragePlugin, name: str
) -> None:
    source = write_bag(tmp_path / "in", storage, raw_frames(), ["/camera/image_raw"])
    edit_metadata(source, relative_file_paths=[name])
    with pytest.raises(UserError, match="outside its directory"):
        list(read_images(source))


def test_file_that_unpacks_to_an_unreasonable_size(
    tmp_path: Path, storage: StoragePlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(bag_reader.tempfile, "tempdir", None)
    source = write_bag(
        tmp_path / "in", storage, raw_frames(), ["/camera/image_raw"], CompressionMode.FILE
    )
    file = next(path for path in source.iterdir() if path.suffix == ".zstd")
    bomb = zstd.ZstdCompressor()
    with file.open("wb") as out:
        for _ in range(100):
            out.write(bomb.compress(bytes(1 << 20)))
        out.write(bomb.flush())
    assert file.stat().st_size < 1 << 16
    with pytest.raises(UserError, match="unpacks to more than"):
        list(read_images(source))
    assert not list(tmp_path.glob("anomaly-detector-bag-*"))


def test_messages_and_chunks_that_unpack_to_an_unreasonable_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "MAX_MESSAGE_BYTES", 5000)
    frame = [image_bytes(pictures()[0], 0)]  # 5246 bytes
    for mode in (CompressionMode.MESSAGE, CompressionMode.STORAGE):
        source = write_bag(
            tmp_path / mode.name, StoragePlugin.MCAP, frame, ["/camera/image_raw"], mode
        )
        with pytest.raises(UserError, match="unpacks to more than 5000 bytes"):
            list(read_images(source))


def test_other_users_of_rosbags_in_the_process_see_no_change(tmp_path: Path) -> None:
    pristine = subprocess.run(
        [
            sys.executable,
            "-c",
            "from rosbags.rosbag2 import storage_mcap as s; before = dict(s.DECOMPRESSORS)\n"
            "import anomaly_detector_ros.sources.recordings\n"
            "assert s.DECOMPRESSORS == before",
        ],
        capture_output=True,
        text=True,
    )
    assert pristine.returncode == 0, pristine.stderr


def test_the_detectors_outputs_of_any_namespace_are_no_cameras(tmp_path: Path) -> None:
    topics = ["/r1/camera/image_raw", "/r1/anomaly_detector/camera/overlay"]
    source = write_bag(tmp_path / "in", StoragePlugin.MCAP, raw_frames(), topics)
    with BagReader(source) as reader:
        assert choose_topic(reader, None) == topics[0]


def test_zstd_is_bounded_and_whole() -> None:
    packed = zstd.compress(b"x" * 1000)
    assert unpack(packed, "zstd", 1000) == b"x" * 1000
    with pytest.raises(ValueError, match="more than 999 bytes"):
        unpack(packed, "zstd", 999)
    with pytest.raises(ValueError, match="cut off"):
        unpack(packed[:-3], "zstd", 1000)
    with pytest.raises(zstd.ZstdError):
        unpack(b"no frame at all", "zstd", 1000)


@pytest.mark.parametrize("text", ["[" * 5000, "&a [*a, *a]", "", "!!python/name:os.system", "a: b"])
def test_odd_metadata(tmp_path: Path, storage: StoragePlugin, text: str) -> None:
    source = write_bag(tmp_path / "in", storage, raw_frames(), ["/camera/image_raw"])
    (source / "metadata.yaml").write_text(text)
    with pytest.raises(UserError, match="cannot read bag") as caught:
        list(read_images(source))
    assert "\n" not in str(caught.value)


def test_unknown_compression(tmp_path: Path, storage: StoragePlugin) -> None:
    source = write_bag(tmp_path / "in", storage, raw_frames(), ["/camera/image_raw"])
    edit_metadata(source, compression_mode="FILE", compression_format="lz4")
    with pytest.raises(UserError, match="compressed as 'lz4': convert it"):
        list(read_images(source))


def test_no_temporary_folder_stays(
    tmp_path: Path, storage: StoragePlugin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bag_reader.tempfile, "tempdir", str(tmp_path))
    source = write_bag(
        tmp_path / "in", storage, raw_frames(), ["/camera/image_raw"], CompressionMode.FILE
    )
    with BagReader(source) as reader:
        assert reader.message_count == 2 * FRAMES + 1
        assert len(list(tmp_path.glob("anomaly-detector-bag-*"))) == 1
    assert os.listdir(tmp_path) == ["in"]


def test_sqlite_takes_no_names_with_marks(tmp_path: Path, detector: Detector) -> None:
    source = write_bag(tmp_path / "in", StoragePlugin.SQLITE3, raw_frames(), ["/camera/image_raw"])
    with pytest.raises(UserError, match="rename it"):
        process_bag(source, tmp_path / "run#2", detector)
