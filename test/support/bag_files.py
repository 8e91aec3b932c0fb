"""Small bags for tests, written with rosbags."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from anomaly_detector_ros.imaging.messages import image_fields
from anomaly_detector_ros.imaging.rendering import encode_jpeg

STORE = get_typestore(Stores.ROS2_JAZZY)
TYPES = STORE.types
IMAGE = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"
STORAGES = [StoragePlugin.SQLITE3, StoragePlugin.MCAP]
FRAMES = 3
START = 1_700_000_000_000_000_000
QOS = Qos(
    QosHistory.KEEP_LAST,
    7,
    QosReliability.BEST_EFFORT,
    QosDurability.TRANSIENT_LOCAL,
    QosTime(1, 2),
    QosTime(3, 4),
    QosLiveliness.AUTOMATIC,
    QosTime(5, 6),
    False,
)


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (34, 51, 3), np.uint8) for _ in range(FRAMES)]


def header(index: int, frame_id: str = "camera_optical") -> object:
    stamp = TYPES["builtin_interfaces/msg/Time"](sec=100 + index, nanosec=index)
    return TYPES["std_msgs/msg/Header"](stamp=stamp, frame_id=frame_id)


def image_bytes(picture: np.ndarray, index: int) -> bytes:
    fields = image_fields(picture, "rgb8")
    fields["data"] = np.frombuffer(fields["data"], np.uint8)
    return bytes(STORE.serialize_cdr(TYPES[IMAGE](header=header(index), **fields), IMAGE))


def string_bytes(text: str) -> bytes:
    kind = "std_msgs/msg/String"
    return bytes(STORE.serialize_cdr(TYPES[kind](data=text), kind))


def camera_info_bytes(width: int) -> bytes:
    kind = "sensor_msgs/msg/CameraInfo"
    roi = TYPES["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    message = TYPES[kind](
        header=header(0), height=34, width=width, distortion_model="plumb_bob",
        d=np.arange(5.0), k=np.arange(9.0), r=np.eye(3).ravel(), p=np.arange(12.0),
        binning_x=0, binning_y=0, roi=roi,
    )  # fmt: skip
    return bytes(STORE.serialize_cdr(message, kind))


def compressed_bytes(picture: np.ndarray, index: int) -> bytes:
    message = TYPES[COMPRESSED](
        header=header(index),
        format="rgb8; jpeg compressed bgr8",
        data=np.frombuffer(encode_jpeg(picture), np.uint8),
    )
    return bytes(STORE.serialize_cdr(message, COMPRESSED))


def write_bag(
    path: Path,
    storage: StoragePlugin,
    frames: list[bytes],
    topics: list[str],
    compression: CompressionMode = CompressionMode.NONE,
) -> Path:
    """A bag with the frames on each topic, a String topic and a CameraInfo."""
    writer = Writer(path, version=9, storage_plugin=storage)
    writer.set_compression(compression, CompressionFormat.ZSTD)
    with writer:
        chatter = writer.add_connection("/chatter", "std_msgs/msg/String", typestore=STORE)
        info = writer.add_connection(
            "/camera/camera_info", "sensor_msgs/msg/CameraInfo", typestore=STORE
        )
        images = [
            writer.add_connection(
                topic,
                COMPRESSED if topic.endswith("/compressed") else IMAGE,
                typestore=STORE,
                offered_qos_profiles=[QOS],
            )
            for topic in topics
        ]
        writer.write(info, START - 1, camera_info_bytes(51))
        for index, data in enumerate(frames):
            writer.write(chatter, START + index * 10, string_bytes(f"hello {index}"))
            for connection in images:
                writer.write(connection, START + index * 10 + 1, data)
    return path


def contents(path: Path) -> dict[str, list[tuple[int, bytes]]]:
    found: dict[str, list[tuple[int, bytes]]] = {}
    with Reader(path) as reader:
        for connection, timestamp, raw in reader.messages():
            found.setdefault(connection.topic, []).append((timestamp, bytes(raw)))
    return found
