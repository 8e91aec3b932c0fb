"""A rosbag2 recording to a new one that also holds what the detector finds, without a ROS graph."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from anomaly_detector_ros.bag_frames import (
    COMPRESSED,
    IMAGE,
    NODE_NAME,
    BagReader,
    camera_name,
    choose_topic,
    deserialize,
    message_to_rgb,
    read_messages,
    typestore,
)
from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.images import ImageError
from anomaly_detector_ros.ros.conversion import image_fields, info_fits
from anomaly_detector_ros.ros.outputs import IMAGE_OUTPUTS, JPEG_FORMAT, encode_jpeg, render

if TYPE_CHECKING:
    from anomaly_detector_ros.detector import Detection, Detector

CAMERA_INFO = "sensor_msgs/msg/CameraInfo"

OUTPUTS: dict[str, str] = {
    **dict.fromkeys(IMAGE_OUTPUTS, IMAGE),
    "overlay/compressed": COMPRESSED,
    "camera_info": CAMERA_INFO,
}
"""Topics written for a camera and their message types."""

# Humble reads metadata of version 8, not of 9; later releases read both.
_METADATA_VERSION = 8
_NO_HASH = "RIHS01_" + "0" * 64

Progress = Callable[[int, int], None]


@dataclass
class BagReport:
    """What was done with a bag.

    Attributes:
        topic: the camera's topic.
        camera: its name in the output topics.
        frames: frames with outputs.
        skipped: frames that could not be read or that the models failed on.
        copied: messages of the input bag in the output bag.
        replaced: topics of the input bag left out because outputs bear the same names.
        first_error: why the first skipped frame was skipped.
    """

    topic: str
    camera: str
    frames: int = 0
    skipped: int = 0
    copied: int = 0
    replaced: list[str] = field(default_factory=list)
    first_error: str = ""


def output_topic(camera: str, output: str) -> str:
    """Full name of an output topic as the node publishes it in the root namespace."""
    return f"/{NODE_NAME}/{camera}/{output}"


def process_bag(
    source: Path,
    output: Path,
    detector: Detector,
    *,
    topic: str | None = None,
    outputs: Sequence[str] = tuple(OUTPUTS),
    skip_errors: bool = True,
    progress: Progress | None = None,
) -> BagReport:
    """Write `output`: all topics of `source` as they are, and the detector's outputs.

    Outputs carry the stamp and frame id of their frame and its bag timestamp; storage kind and QoS
    profiles are those of the input. The bag appears under its name only when it is complete.

    Args:
        source: bag directory, or one .mcap or .db3 file.
        output: directory to make.
        detector: runs on every frame of the topic.
        topic: the camera's topic; by default the only one there is.
        outputs: names from :data:`OUTPUTS`.
        skip_errors: skip and count frames that cannot be read, rather than stop.
        progress: called with frames done and frames in all.

    Raises:
        UserError: missing, truncated or unreadable bag; no or several camera topics; unknown
            output; `output` exists or cannot be written; a bad frame unless `skip_errors`.
    """
    unknown = [name for name in outputs if name not in OUTPUTS]
    if unknown:
        raise UserError(f"unknown output '{unknown[0]}': choose from {', '.join(OUTPUTS)}")
    if output.exists():
        raise UserError(f"'{output}' exists already: remove it or give another output")
    partial = output.with_name(output.name + ".partial")
    with BagReader(source) as reader:
        chosen = choose_topic(reader, source, topic)
        _clear(partial)
        try:
            # The storage file takes its directory's name, so the final name is used inside.
            with Writer(
                partial / output.name, version=_METADATA_VERSION, storage_plugin=_storage(source)
            ) as writer:
                job = _Job(reader, writer, source, chosen, outputs)
                report = job.run(detector, skip_errors, progress)
            (partial / output.name).replace(output)
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"cannot write '{output}' ({one_line(error)}): make room or give another output"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return report


class _Job:
    """One pass over a bag."""

    def __init__(
        self, reader: BagReader, writer: Writer, source: Path, topic: str, outputs: Sequence[str]
    ) -> None:
        self.reader, self.writer, self.source = reader, writer, source
        camera = camera_name(topic)
        self.report = BagReport(topic, camera)
        root = topic.removesuffix("/compressed").rpartition("/")[0]
        self.info_topic = f"{root}/camera_info"
        infos = [c for c in reader.connections if c.topic == self.info_topic]
        self.info = self._first_camera_info(infos)
        names = [n for n in outputs if n != "camera_info" or self.info is not None]
        topics = {output_topic(camera, name) for name in names}
        self.report.replaced = sorted({c.topic for c in reader.connections} & topics)
        self.copies = self._add_copies()
        self.frames = sum(c.msgcount for c in reader.connections if c.topic == topic)
        self.targets = {
            name: writer.add_connection(
                output_topic(camera, name),
                OUTPUTS[name],
                typestore=typestore(),
                offered_qos_profiles=[_output_qos()],
            )
            for name in names
        }

    def run(self, detector: Detector, skip_errors: bool, progress: Progress | None) -> BagReport:
        """Copy all messages and add the outputs behind each frame."""
        report, done = self.report, 0
        wanted = [c for c in self.reader.connections if c.id in self.copies]
        for connection, timestamp, raw in read_messages(self.reader, self.source, wanted):
            self.writer.write(self.copies[connection.id], timestamp, raw)
            report.copied += 1
            if connection.topic == self.info_topic and connection.msgtype == CAMERA_INFO:
                with suppress(ImageError):  # a damaged one: the last good one holds
                    self.info = deserialize(raw, CAMERA_INFO)
            if connection.topic != report.topic:
                continue
            try:
                message = deserialize(raw, connection.msgtype)
                image = message_to_rgb(message, connection.msgtype)
                detection = detector.detect(image)
            except (ImageError, RuntimeError) as error:  # the models raise RuntimeError
                if not skip_errors:
                    raise UserError(f"frame {done + 1} of '{report.topic}': {error}") from error
                report.skipped += 1
                report.first_error = report.first_error or one_line(error)
            else:
                self._write_outputs(timestamp, message.header, image, detection)
                report.frames += 1
            done += 1
            if progress:
                progress(done, max(done, self.frames))
        return report

    def _write_outputs(
        self, timestamp: int, header: Any, image: np.ndarray, detection: Detection
    ) -> None:
        rendered: dict[str, np.ndarray] = {}
        for name, target in self.targets.items():
            if name == "camera_info":
                if not info_fits(self.info, image.shape[:2]):
                    continue
                fields = {**vars(self.info), "header": header}
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
            self.writer.write(target, timestamp, _serialize(fields, OUTPUTS[name]))

    def _add_copies(self) -> dict[int, Connection]:
        """Output connections by the id of the input connection that they copy."""
        copies: dict[int, Connection] = {}
        added: list[tuple[str, str, Any, Connection]] = []
        for connection in self.reader.connections:
            topic, msgtype, ext = connection.topic, connection.msgtype, connection.ext
            if topic in self.report.replaced:
                continue
            # rosbags refuses a second connection that differs in nothing.
            twin = next((c for t, m, e, c in added if (t, m, e) == (topic, msgtype, ext)), None)
            if twin is None:
                msgdef, digest = _definition(connection)
                twin = self.writer.add_connection(
                    topic,
                    msgtype,
                    msgdef=msgdef,
                    rihs01=digest,
                    serialization_format=ext.serialization_format,
                    offered_qos_profiles=ext.offered_qos_profiles,
                )
                added.append((topic, msgtype, ext, twin))
            copies[connection.id] = twin
        return copies

    def _first_camera_info(self, connections: list[Connection]) -> Any:
        if any(c.msgtype == CAMERA_INFO for c in connections):
            for connection, _, raw in read_messages(self.reader, self.source, connections):
                with suppress(ImageError):
                    return deserialize(raw, connection.msgtype)
        return None


def _storage(bag: Path) -> StoragePlugin:
    names = [bag.name] if bag.is_file() else [file.name for file in bag.iterdir()]
    mcap = any(".mcap" in name for name in names)
    return StoragePlugin.MCAP if mcap else StoragePlugin.SQLITE3


def _definition(connection: Connection) -> tuple[str, str]:
    """Message definition and type hash of a connection, found again where the bag lacks them."""
    text, digest = connection.msgdef.data, connection.digest
    if text and digest:
        return text, digest
    with suppress(Exception):
        store = get_typestore(Stores.ROS2_JAZZY)
        if connection.msgtype not in store.types and text:
            store.register(get_types_from_msg(text, connection.msgtype))
        generated, _ = store.generate_msgdef(connection.msgtype, ros_version=2)
        return text or generated, digest or store.hash_rihs01(connection.msgtype)
    # A type that nothing describes; old releases recorded none and play it back all the same.
    return text, digest or _NO_HASH


def _serialize(fields: dict[str, Any], msgtype: str) -> memoryview:
    store = typestore()
    if "data" in fields:
        fields = {**fields, "data": np.frombuffer(fields["data"], np.uint8)}
    fields.pop("__msgtype__", None)
    return store.serialize_cdr(store.types[msgtype](**fields), msgtype)


def _output_qos() -> Qos:
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


def _clear(partial: Path) -> None:
    """Remove what an interrupted run left, and make the directory."""
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"cannot make '{partial}' ({one_line(error)}): give another output"
        ) from error
