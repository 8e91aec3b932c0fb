"""The messages that the bag tool adds for a frame, those the node would publish; read back, too."""

from __future__ import annotations

import struct
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.imaging.images import ImageError, Range
from anomaly_detector_ros.imaging.messages import image_fields
from anomaly_detector_ros.imaging.rendering import IMAGE_OUTPUTS, JPEG_FORMAT, encode_jpeg, render
from anomaly_detector_ros.mapping.camera_model import fitted
from anomaly_detector_ros.sources.recordings import (
    COMPRESSED,
    IMAGE,
    NODE_NAME,
    BagReader,
    camera_name,
    deserialize,
    message_to_rgb,
    typestore,
)

if TYPE_CHECKING:
    from anomaly_detector_ros.detection import Detection

CAMERA_INFO = "sensor_msgs/msg/CameraInfo"

# Bytes up to the end of a header's stamp, the encapsulation among them.
_STAMP_END = 12
# Frames whose outputs have not all come.
_WAITING = 16

OUTPUTS: dict[str, str] = {
    **dict.fromkeys(IMAGE_OUTPUTS, IMAGE),
    "overlay/compressed": COMPRESSED,
    "camera_info": CAMERA_INFO,
}
"""Topics written for a camera and their message types."""


def output_topic(camera: str, output: str) -> str:
    """Full name of an output topic as the node publishes it in the root namespace."""
    return f"/{NODE_NAME}/{camera}/{output}"


def frame_messages(
    names: list[str], header: Any, image: np.ndarray, detection: Detection, info: Any
) -> dict[str, memoryview]:
    """The serialised messages of one frame, by output name; those that there can be.

    Args:
        names: of :data:`OUTPUTS`.
        header: of the frame; every output carries it.
        image: the frame, uint8 RGB (H, W, 3).
        detection: what was found in it.
        info: the camera's latest CameraInfo, or None.
    """
    rendered: dict[str, np.ndarray] = {}
    messages = {}
    for name in names:
        fields: dict[str, Any]
        if name == "camera_info":
            if info is None:
                continue
            try:
                fields = {**vars(info), **fitted(info, image.shape[:2]), "header": header}
            except UserError:
                continue
        else:
            source = name.partition("/")[0]
            if source not in rendered:
                rendered[source] = render(source, image, detection)
            if name == "overlay/compressed":
                data = encode_jpeg(rendered[source])
                fields = {"header": header, "format": JPEG_FORMAT, "data": data}
            else:
                encoding = IMAGE_OUTPUTS[name].encoding
                fields = {"header": header, **image_fields(rendered[source], encoding)}
        messages[name] = _serialize(fields, OUTPUTS[name])
    return messages


@dataclass
class RecordedFrame:
    """A frame of a recording and what the detector said of it.

    Attributes:
        number: of its message on the camera's topic, from 0.
        stamp: of its header, in ns.
        layers: "input", uint8 RGB (H, W, 3), and those of its outputs that are there: "edited" and
            "overlay" likewise, "mask", uint8 (H, W), and "heatmap", float32 (H, W).
        answered: bag timestamp of its last output, in ns.
    """

    number: int
    stamp: int
    layers: dict[str, np.ndarray] = field(default_factory=dict)
    answered: int = 0


def read_outputs(
    bag: Path,
    topic: str,
    numbers: Container[int] | None = None,
    grey_range: Range | None = None,
) -> Iterator[RecordedFrame]:
    """Frames of a camera with the detector's outputs of the same stamp, in the bag's order.

    Args:
        bag: that the node's topics were recorded into, or that `process_bag` wrote.
        topic: the camera's image topic.
        numbers: the frames that are wanted; None for all.
        grey_range: see `images.to_8_bit`.

    Raises:
        UserError: the bag is damaged.
    """
    camera = camera_name(topic)
    shown = ("edited", "heatmap", "mask", "overlay", "overlay/compressed")
    outputs = {output_topic(camera, name): name.partition("/")[0] for name in shown}
    with BagReader(bag) as reader:
        topics = {c.topic for c in reader.connections}
        if output_topic(camera, "overlay") in topics:
            del outputs[output_topic(camera, "overlay/compressed")]
        wanted = [c for c in reader.connections if c.topic == topic or c.topic in outputs]
        complete = 1 + len(outputs.keys() & topics)
        waiting: dict[int, RecordedFrame] = {}
        number = -1
        for connection, timestamp, raw in reader.messages(wanted):
            is_frame = connection.topic == topic
            number += is_frame
            if is_frame and numbers is not None and number not in numbers:
                continue
            stamp = header_stamp(raw) if len(raw) >= _STAMP_END else 0
            if is_frame:
                # Another frame of this stamp, or one that lost an output, gets no more of them.
                if stamp in waiting:
                    yield waiting.pop(stamp)
                elif len(waiting) >= _WAITING:
                    yield waiting.pop(next(iter(waiting)))
                waiting[stamp] = RecordedFrame(number, stamp)
            elif stamp not in waiting:
                continue
            frame = waiting[stamp]
            name = "input" if is_frame else outputs[connection.topic]
            try:
                message = deserialize(raw, connection.msgtype)
                frame.layers[name] = _layer(name, message, connection, grey_range)
            except (ImageError, ValueError):
                continue
            frame.answered = frame.answered if is_frame else timestamp
            if len(frame.layers) == complete:
                yield waiting.pop(stamp)
        yield from waiting.values()


def header_stamp(data: bytes) -> int:
    """Stamp in nanoseconds of a serialised message that begins with a std_msgs/Header.

    Raises:
        ValueError: it is too short for one.
    """
    if len(data) < _STAMP_END:
        raise ValueError(f"{len(data)} bytes are no message with a header")
    seconds, nanoseconds = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def _layer(name: str, message: Any, connection: Any, grey_range: Range | None) -> np.ndarray:
    if name == "heatmap":
        rows = np.frombuffer(message.data, ">f4" if message.is_bigendian else "<f4")
        return rows.reshape(message.height, -1)[:, : message.width].astype(np.float32)
    rgb = message_to_rgb(message, connection.msgtype, connection.topic, grey_range)
    return rgb[..., 0] if name == "mask" else rgb


def output_qos() -> Qos:
    """RELIABLE, keep last 1, as the node publishes."""
    unlimited = QosTime(sec=9223372036, nsec=854775807)
    return Qos(
        history=QosHistory.KEEP_LAST,
        depth=1,
        reliability=QosReliability.RELIABLE,
        durability=QosDurability.VOLATILE,
        deadline=unlimited,
        lifespan=unlimited,
        liveliness=QosLiveliness.AUTOMATIC,
        liveliness_lease_duration=unlimited,
        avoid_ros_namespace_conventions=False,
    )


def _serialize(fields: dict[str, Any], msgtype: str) -> memoryview:
    store = typestore()
    if "data" in fields:
        fields = {**fields, "data": np.frombuffer(fields["data"], np.uint8)}
    fields.pop("__msgtype__", None)
    return store.serialize_cdr(store.types[msgtype](**fields), msgtype)
