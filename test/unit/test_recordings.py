"""Recordings of every make: what was written is what is read, or it is said what is missing."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from mcap.writer import CompressionType, IndexType
from mcap.writer import Writer as McapWriter
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from support.bag_files import IMAGE, START, STORAGES, STORE, image_bytes, pictures, write_bag

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.sources.recordings import BagReader, is_recording, read_images
from anomaly_detector_ros.sources.unpacking import zstd

TOPICS = ["/a/image_raw", "/b/image_raw", "/imu"]
FEW = settings(max_examples=60, deadline=None)

Messages = list[tuple[str, int, bytes]]

messages = st.lists(
    st.tuples(
        st.sampled_from(TOPICS),
        st.integers(START, START + 40),
        st.binary(min_size=1, max_size=60),
    ),
    max_size=25,
)


def read(bag: Path) -> Messages:
    """Every message, after a look at the counts that the bag declares."""
    with BagReader(bag) as reader:
        found = [(c.topic, time, raw) for c, time, raw in reader.messages()]
        assert reader.message_count == len(found)
    return found


@FEW
@given(
    written=messages,
    foreign=st.lists(st.tuples(st.integers(0, 24), st.integers(START, START + 40)), max_size=4),
    profile=st.sampled_from(["ros2", "", "x"]),
    chunk_size=st.integers(1, 300),
    compression=st.sampled_from(list(CompressionType)),
    index_types=st.integers(0, IndexType.ALL.value).map(IndexType),
    flags=st.tuples(*[st.booleans()] * 6),
)
def test_mcap_files_of_any_make(
    tmp_path_factory: pytest.TempPathFactory,
    written: Messages,
    foreign: list[tuple[int, int]],
    profile: str,
    chunk_size: int,
    compression: CompressionType,
    index_types: IndexType,
    flags: tuple[bool, ...],
) -> None:
    file = tmp_path_factory.mktemp("bag") / "drive of # 100%?.mcap"
    chunking, channels, schemas, statistics, offsets, crcs = flags
    with file.open("wb") as stream:
        writer = McapWriter(
            stream,
            chunk_size=chunk_size,
            compression=compression,
            index_types=index_types,
            use_chunking=chunking,
            repeat_channels=channels,
            repeat_schemas=schemas,
            use_statistics=statistics,
            use_summary_offsets=offsets,
            enable_crcs=crcs,
        )
        writer.start(profile)
        schema = writer.register_schema(IMAGE, "ros2msg", b"uint8[] data")
        json = writer.register_schema("anything", "jsonschema", b"{}")
        ids = {}
        for number, (topic, time, data) in enumerate(written):
            for at, other in foreign:
                if at == number:
                    if "json" not in ids:
                        ids["json"] = writer.register_channel("/status", "json", json)
                    writer.add_message(ids["json"], other, b"{}", other)
            if topic not in ids:
                ids[topic] = writer.register_channel(topic, "cdr", schema)
            writer.add_message(ids[topic], time, data, time)
        writer.finish()
    assert is_recording(file)
    assert read(file) == sorted(written, key=lambda message: message[1])
    with BagReader(file) as reader:
        assert reader.left_out == ({"/status": "json"} if "json" in ids else {})


@FEW
@given(
    written=messages,
    storage=st.sampled_from(STORAGES),
    mode=st.sampled_from(list(CompressionMode)),
    change=st.sampled_from(["none", "qos", "identifier", "fewer", "more", "bare", "name"]),
)
def test_rosbag2_directories_of_any_make(
    tmp_path_factory: pytest.TempPathFactory,
    written: Messages,
    storage: StoragePlugin,
    mode: CompressionMode,
    change: str,
) -> None:
    bag = tmp_path_factory.mktemp("bag") / "drive"
    if storage is StoragePlugin.SQLITE3 and mode is CompressionMode.STORAGE:
        mode = CompressionMode.NONE
    writer = Writer(bag, version=9, storage_plugin=storage)
    if mode is not CompressionMode.NONE:
        writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        connections = {t: writer.add_connection(t, IMAGE, typestore=STORE) for t in TOPICS}
        for topic, time, data in written:
            writer.write(connections[topic], time, data)
    content = yaml.safe_load((bag / "metadata.yaml").read_text())
    metadata = content["rosbag2_bagfile_information"]
    for each in metadata["topics_with_message_count"]:
        if change == "qos":
            each["topic_metadata"]["offered_qos_profiles"] = "- depth: 3"
        elif change == "fewer":
            each["message_count"] = 0
    if change == "identifier":
        metadata["storage_identifier"] = ""
    elif change == "more":
        metadata["topics_with_message_count"][0]["message_count"] += 1
    (bag / "metadata.yaml").write_text(yaml.safe_dump(content))
    if change == "bare" and mode is not CompressionMode.MESSAGE:
        bag = next(file for file in bag.iterdir() if file.name != "metadata.yaml")
    elif change == "name":
        bag = bag.rename(bag.with_name("100% #2? drive"))
    if change == "more":
        with pytest.raises(UserError, match="it is not whole"):
            read(bag)
        return
    assert read(bag) == sorted(written, key=lambda message: message[1])


@settings(max_examples=15, deadline=None)
@given(
    count=st.integers(1, 5),
    compression=st.sampled_from([None, *Ros1Writer.CompressionFormat]),
    chunk=st.integers(1, 20_000),
)
def test_ros1_bags(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    compression: Ros1Writer.CompressionFormat | None,
    chunk: int,
) -> None:
    file = tmp_path_factory.mktemp("bag") / "drive.bag"
    old = get_typestore(Stores.ROS1_NOETIC)
    writer = Ros1Writer(file)
    writer.chunk_threshold = chunk
    if compression:
        writer.set_compression(compression)
    shown = [pictures()[index % 3] for index in range(count)]
    with writer:
        images = writer.add_connection("/camera/image_raw", IMAGE, typestore=old)
        for index, picture in enumerate(shown):
            message = STORE.deserialize_cdr(image_bytes(picture, index), IMAGE)
            stamp = old.types["builtin_interfaces/msg/Time"](7, index)
            header = old.types["std_msgs/msg/Header"](seq=3, stamp=stamp, frame_id="camera")
            fields = {k: v for k, v in vars(message).items() if k != "__msgtype__"}
            one = old.types[IMAGE](**{**fields, "header": header})
            writer.write(images, START + index, old.serialize_ros1(one, IMAGE))
    found = list(read_images(file))
    assert [time for time, _ in found] == [START + index for index in range(count)]
    assert all((a == b).all() for (_, a), b in zip(found, shown, strict=True))


def test_two_publishers_of_one_topic_are_one_topic(tmp_path: Path) -> None:
    file = tmp_path / "drive.mcap"
    with file.open("wb") as stream:
        writer = McapWriter(stream)
        writer.start("ros2")
        schema = writer.register_schema("sensor_msgs/Image", "ros2msg", b"uint8[] data")
        for qos in ("", "- history: 1"):
            channel = writer.register_channel("/a", "cdr", schema, {"offered_qos_profiles": qos})
            writer.add_message(channel, START, b"x", START)
        writer.finish()
    with BagReader(file) as reader:
        (topic,) = reader.connections
    assert (topic.msgtype, topic.msgcount) == (IMAGE, 2)
    assert len(read(file)) == 2


def test_the_error_of_a_bag_that_is_not_whole_is_one_short_line(tmp_path: Path) -> None:
    frames = [image_bytes(picture, i) for i, picture in enumerate(pictures())]
    bag = write_bag(tmp_path / "in", StoragePlugin.MCAP, frames, ["/c/image_raw"])
    text = (bag / "metadata.yaml").read_text()
    (bag / "metadata.yaml").write_text(text.replace("/c/image_raw", "/" + "x" * 5000))
    with pytest.raises(UserError, match="is not whole") as caught:
        read(bag)
    assert len(str(caught.value)) < 400


def test_messages_in_the_log_of_sqlite(tmp_path: Path) -> None:
    frames = [image_bytes(picture, i) for i, picture in enumerate(pictures())]
    bag = write_bag(tmp_path / "in", StoragePlugin.SQLITE3, frames, ["/camera/image_raw"])
    whole = read(bag)
    file = next(bag.glob("*.db3"))
    killed = tmp_path / "killed"
    with sqlite3.connect(file) as data:
        data.execute("PRAGMA journal_mode=WAL")
        rows = data.execute("SELECT * FROM messages ORDER BY id DESC LIMIT 3").fetchall()
        data.execute("DELETE FROM messages WHERE id > (SELECT MAX(id) - 3 FROM messages)")
        data.commit()
        data.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        data.executemany("INSERT INTO messages VALUES (?, ?, ?, ?)", rows)
        data.commit()
        shutil.copytree(bag, killed)
    data.close()
    before = {path.name: path.read_bytes() for path in killed.iterdir()}
    assert read(killed) == whole
    assert {path.name: path.read_bytes() for path in killed.iterdir()} == before
    next(killed.glob("*-wal")).unlink()
    with pytest.raises(UserError, match=r"declares \d+ messages on .*, only \d+ are there"):
        read(killed)


def test_a_topic_of_any_length_is_told_in_a_line(tmp_path: Path) -> None:
    frames = [image_bytes(picture, i) for i, picture in enumerate(pictures())]
    bag = write_bag(tmp_path / "in", StoragePlugin.SQLITE3, frames, ["/" + "x" * 8000])
    with sqlite3.connect(next(bag.glob("*.db3"))) as data:
        (topic,) = data.execute("SELECT id FROM topics WHERE length(name) > 8000").fetchone()
        data.execute("DELETE FROM messages WHERE topic_id = ?", (topic,))
    data.close()
    with pytest.raises(UserError, match=r"declares \d+ messages on /xxx.*only 0 are there") as told:
        read(bag)
    assert len(str(told.value).replace(str(bag), "")) < 300


@pytest.mark.parametrize("where", ["chunk", "end"])
def test_altered_mcap_files_are_told(tmp_path: Path, where: str) -> None:
    frames = [image_bytes(picture, i) for i, picture in enumerate(pictures())]
    bag = write_bag(tmp_path / "in", StoragePlugin.MCAP, frames, ["/c/image_raw"])
    file = next(bag.glob("*.mcap"))
    data = file.read_bytes()
    if where == "chunk":  # more messages than it has; rosbags writes no check sum
        file.write_bytes(data.replace(b"\x05", b"\x01", 1))
    else:
        file.write_bytes(data[:-200])
    with pytest.raises(UserError, match=r"it is truncated, damaged|is not whole"):
        read(file)


@pytest.mark.parametrize("name", ["drive.mcap.zstd", "drive.mcap.zst"])
def test_a_packed_file_is_unpacked(tmp_path: Path, name: str) -> None:
    frames = [image_bytes(picture, i) for i, picture in enumerate(pictures())]
    bag = write_bag(tmp_path / "in", StoragePlugin.MCAP, frames, ["/c/image_raw"])
    packed = tmp_path / name
    packed.write_bytes(zstd.compress(next(bag.glob("*.mcap")).read_bytes()))
    assert is_recording(packed)
    assert read(packed) == read(bag)
