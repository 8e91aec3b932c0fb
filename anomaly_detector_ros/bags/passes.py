"""One pass over a bag: every message copied, the outputs of the detector behind each frame."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from anomaly_detector_ros.bags.journal import BagJournal, FrameResult
from anomaly_detector_ros.bags.outputs import (
    CAMERA_INFO,
    OUTPUTS,
    frame_messages,
    output_qos,
    output_topic,
)
from anomaly_detector_ros.calibration.level import StreamLevels
from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.imaging.images import ImageError, Range
from anomaly_detector_ros.runtime.progress import Progress
from anomaly_detector_ros.sources.recordings import (
    BagReader,
    camera_name,
    deserialize,
    message_to_rgb,
    offered_qos,
    typestore,
)
from anomaly_detector_ros.sources.tally import Tally

if TYPE_CHECKING:
    from anomaly_detector_ros.detection import Detection
    from anomaly_detector_ros.detector import Detector

# Frames handed to the detector while the outputs of the one before them are made and written.
_AHEAD = 1
_NO_HASH = "RIHS01_" + "0" * 64


@dataclass(frozen=True)
class JudgedFrame:
    """What is told of a frame with outputs.

    Attributes:
        number: of its message on the camera's topic, from 0.
        timestamp: of that message in the bag, in ns.
        score: `Detection.score`.
        anomalous: share of its pixels in the mask.
        timings: `Detection.timings`.
    """

    number: int
    timestamp: int
    score: float
    anomalous: float
    timings: dict[str, float]


@dataclass
class CameraReport:
    """What was done with the frames of one camera.

    Attributes:
        topic: its image topic.
        camera: its name in the output topics.
        frames: frames with outputs.
        skipped: frames that could not be read or that the models failed on.
        first_error: why the first skipped frame was skipped.
        judged: each frame with outputs.
    """

    topic: str
    camera: str
    frames: int = 0
    skipped: int = 0
    first_error: str = ""
    judged: list[JudgedFrame] = field(default_factory=list)


@dataclass
class BagReport:
    """What was done with a bag.

    Attributes:
        cameras: what was done with the frames of each.
        tally: all frames by what became of them.
        resumed: frames taken from an interrupted run, of all.
        copied: messages of the input bag in the output bag.
        replaced: topics of the input bag left out because outputs bear the same names.
    """

    cameras: list[CameraReport]
    tally: Tally = field(default_factory=Tally)
    resumed: int = 0
    copied: int = 0
    replaced: list[str] = field(default_factory=list)

    @property
    def frames(self) -> int:
        """Frames with outputs, of all cameras."""
        return sum(camera.frames for camera in self.cameras)

    @property
    def skipped(self) -> int:
        """Frames without, of all cameras."""
        return sum(camera.skipped for camera in self.cameras)

    @property
    def first_error(self) -> str:
        """Why a frame was skipped; "" if none was."""
        return next((c.first_error for c in self.cameras if c.first_error), "")


@dataclass
class _Camera:
    """One camera of the bag: its report, where its outputs go, its latest CameraInfo and levels."""

    report: CameraReport
    info_topic: str
    info: Any
    targets: dict[str, Connection]
    levels: StreamLevels = field(default_factory=StreamLevels)


@dataclass
class _Message:
    """A message on its way through; `camera` is None unless it is a frame.

    Of a frame there is either `known`, from the journal, or `found`, from the detector.
    """

    connection: Connection
    timestamp: int
    raw: bytes
    camera: _Camera | None = None
    known: FrameResult | None = None
    found: Future[tuple[Any, np.ndarray, Detection]] | None = None


class BagPass:
    """One pass over a bag.

    Args:
        reader: the open input.
        writer: the open, empty output.
        journal: has the results of frames that are finished already, and takes those of others.
        topics: of the cameras, by :func:`frames.camera_name` of different ones.
        outputs: names from :data:`OUTPUTS`.
        grey_range: see `images.to_8_bit`.
    """

    def __init__(
        self,
        reader: BagReader,
        writer: Writer,
        journal: BagJournal,
        topics: Sequence[str],
        outputs: Sequence[str],
        grey_range: Range | None = None,
    ) -> None:
        self.grey_range = grey_range
        self.reader, self.writer, self.journal = reader, writer, journal
        cameras = [self._camera(topic) for topic in topics]
        names = {
            c.report.camera: [n for n in outputs if n != "camera_info" or c.info is not None]
            for c in cameras
        }
        added = {output_topic(camera, name) for camera in names for name in names[camera]}
        replaced = sorted({c.topic for c in reader.connections} & added)
        self.copies = _add_copies(reader, writer, leave_out=replaced)
        for camera in cameras:
            camera.targets = self._add_outputs(camera.report.camera, names[camera.report.camera])
        self.cameras = {camera.report.topic: camera for camera in cameras}
        self.report = BagReport([camera.report for camera in cameras], replaced=replaced)
        self.total = sum(c.msgcount for c in reader.connections if c.topic in self.cameras)

    def run(self, detector: Detector, skip_errors: bool, progress: Progress) -> BagReport:
        """Copy all messages and add the outputs behind each frame.

        Raises:
            UserError: the input is damaged, or a frame is bad, unless `skip_errors`.
            OSError: the disk is full.
        """
        written = 0
        with ThreadPoolExecutor(1, "detector") as pool:
            try:
                for message in _behind(self._messages(pool, detector)):
                    self._copy(message)
                    if message.camera is not None:
                        written += 1
                        self._add_results(message, message.camera, written, skip_errors)
                        progress(written, max(written, self.total))
            finally:
                pool.shutdown(cancel_futures=True)
        return self.report

    def _messages(self, pool: ThreadPoolExecutor, detector: Detector) -> Iterator[_Message]:
        """The input's messages in their order, frames handed to the detector."""
        wanted = [c for c in self.reader.connections if c.id in self.copies]
        frames = 0
        for connection, timestamp, raw in self.reader.messages(wanted):
            message = _Message(connection, timestamp, raw, self.cameras.get(connection.topic))
            if message.camera is not None:
                frames += 1
                if frames <= self.journal.left:
                    message.known = self._known(message.camera, timestamp)
                else:
                    message.found = pool.submit(
                        _detect, detector, message.camera, message, self.grey_range
                    )
            yield message

    def _known(self, camera: _Camera, timestamp: int) -> FrameResult:
        result = self.journal.next()
        if not result.error:
            camera.levels.add(result.level, timestamp)
        return result

    def _copy(self, message: _Message) -> None:
        connection = message.connection
        self.writer.write(self.copies[connection.id], message.timestamp, message.raw)
        self.report.copied += 1
        if connection.msgtype == CAMERA_INFO:
            for camera in self.cameras.values():
                if camera.info_topic == connection.topic:
                    with suppress(ImageError):  # a damaged one: the last good one holds
                        camera.info = deserialize(message.raw, CAMERA_INFO)

    def _add_results(
        self, message: _Message, camera: _Camera, number: int, skip_errors: bool
    ) -> None:
        """Write the outputs of frame `number`, the detector's or the journal's."""
        report = camera.report
        if message.found is None:
            assert message.known is not None
            result = message.known
            self.report.resumed += 1
        else:
            result = _result(camera, message.found)
        if result.error:
            name = f"frame {number} of '{report.topic}'"
            if not skip_errors:
                raise UserError(f"{name}: {result.error}")
            reason = "unreadable" if result.unreadable else "failed in the models"
            self.report.tally.skip(reason, f"{name}: {result.error}")
        if message.found is not None:
            self.journal.append(result)
        for name, data in result.messages.items():
            self.writer.write(camera.targets[name], message.timestamp, data)
        if result.error:
            report.skipped += 1
            report.first_error = report.first_error or result.error
        else:
            report.judged.append(
                JudgedFrame(
                    report.frames + report.skipped,
                    message.timestamp,
                    result.score,
                    result.anomalous,
                    result.timings,
                )
            )
            report.frames += 1
            self.report.tally.processed += 1

    def _camera(self, topic: str) -> _Camera:
        root = topic.removesuffix("/compressed").rpartition("/")[0]
        info_topic = f"{root}/camera_info"
        report = CameraReport(topic, camera_name(topic))
        return _Camera(report, info_topic, self._first_camera_info(info_topic), {})

    def _first_camera_info(self, topic: str) -> Any:
        """So that frames before the first CameraInfo have one, too."""
        connections = [
            c for c in self.reader.connections if c.topic == topic and c.msgtype == CAMERA_INFO
        ]
        # Asked for the messages of no connection, a reader gives those of all.
        for _, _, raw in self.reader.messages(connections) if connections else ():
            with suppress(ImageError):
                return deserialize(raw, CAMERA_INFO)
        return None

    def _add_outputs(self, camera: str, names: list[str]) -> dict[str, Connection]:
        return {
            name: self.writer.add_connection(
                output_topic(camera, name),
                OUTPUTS[name],
                typestore=typestore(),
                offered_qos_profiles=[output_qos()],
            )
            for name in names
        }


def _behind(messages: Iterator[_Message]) -> Iterator[_Message]:
    """The messages in their order, each frame when the detector has the next one to work on."""
    waiting: deque[_Message] = deque()
    frames = 0
    for message in messages:
        waiting.append(message)
        frames += message.camera is not None
        while waiting and (frames == 0 or frames > _AHEAD):
            frames -= waiting[0].camera is not None
            yield waiting.popleft()
    yield from waiting


def _detect(
    detector: Detector, camera: _Camera, frame: _Message, grey_range: Range | None
) -> tuple[Any, np.ndarray, Detection]:
    """Header and picture of a frame, and what is found in it."""
    msgtype, topic = frame.connection.msgtype, frame.connection.topic
    message = deserialize(frame.raw, msgtype)
    image = message_to_rgb(message, msgtype, topic, grey_range)
    found = detector.detect(image, before=camera.levels.before(frame.timestamp))
    camera.levels.add(found.level, frame.timestamp)
    return message.header, image, found


def _result(camera: _Camera, found: Future[tuple[Any, np.ndarray, Detection]]) -> FrameResult:
    try:
        header, image, detection = found.result()
    except Exception as error:  # models and the libraries below them raise many kinds
        return FrameResult(error=one_line(error), unreadable=isinstance(error, ImageError))
    names = list(camera.targets)
    messages = frame_messages(names, header, image, detection, camera.info)
    return FrameResult(
        dict(messages),
        level=detection.level,
        score=detection.score,
        anomalous=float(detection.mask.mean()),
        timings=detection.timings,
    )


def _add_copies(
    reader: BagReader, writer: Writer, *, leave_out: Collection[str]
) -> dict[int, Connection]:
    """Output connections by the id of the input connection that they copy.

    Args:
        reader: the open input.
        writer: the open output.
        leave_out: topics that are not copied.
    """
    copies: dict[int, Connection] = {}
    for connection in reader.connections:
        if connection.topic not in leave_out:
            msgdef, digest = _definition(connection)
            copies[connection.id] = writer.add_connection(
                connection.topic,
                connection.msgtype,
                msgdef=msgdef,
                rihs01=digest,
                offered_qos_profiles=offered_qos(connection),
            )
    return copies


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
