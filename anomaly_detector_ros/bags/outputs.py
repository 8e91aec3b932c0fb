"""The messages that the bag tool adds for a frame: those the node would publish."""

from __future__ import annotations

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
from anomaly_detector_ros.imaging.messages import image_fields
from anomaly_detector_ros.imaging.rendering import IMAGE_OUTPUTS, JPEG_FORMAT, encode_jpeg, render
from anomaly_detector_ros.mapping.camera_model import fitted
from anomaly_detector_ros.sources.recordings import COMPRESSED, IMAGE, NODE_NAME, typestore

if TYPE_CHECKING:
    from anomaly_detector_ros.detection import Detection

CAMERA_INFO = "sensor_msgs/msg/CameraInfo"

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
