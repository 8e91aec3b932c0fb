"""One pass over a bag: every message copied, the outputs of the detector behind each frame."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from rosbags.interfaces import Connection
from rosbags.rosbag2 import Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from anomaly_detector_ros.bags.journal import FrameResult
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

Found: TypeAlias = "tuple[Any, np.ndarray, Detection]"


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

    def to_dict(self, source: Path, output: Path) -> dict[str, Any]:
        """For JSON."""
        counts = {"frames": self.frames, "skipped": self.skipped}
        told = {**asdict(self), "tally": self.tally.to_dict()}
        for camera in told["cameras"]:
            del camera["judged"]
        return {"input": str(source), "output": str(output), **counts, **told}

    @property
    def barren(self) -> str:
        """Which camera has not one frame with outputs though it has frames, as an error; or ""."""
        without = [each.topic for each in self.cameras if each.skipped and not each.frames]
        if not without:
            return ""
        return f"no frame of '{without[0]}' could be processed: check the recording"

    @property
    def first_error(self) -> str:
        """Why a frame was skipped; "" if none was."""
        return next((c.first_error for c in self.cameras if c.first_error), "")


@dataclass
class Camera:
    """One camera of a bag, as far as the bag is read.

    Attributes:
        topic: its image topic.
        name: its own in the output topics.
        outputs: what is made of its frames, names from :data:`OUTPUTS`.
        info_topic: its CameraInfo's.
        info: its latest CameraInfo; before the first one that, and None where there is none.
        levels: of its last frames.
    """

    topic: str
    name: str
    outputs: list[str]
    info_topic: str
    info: Any
    levels: StreamLevels = field(default_factory=StreamLevels)

    @classmethod
    def of(cls, reader: BagReader, topic: str, outputs: Sequence[str]) -> Camera:
        """The camera of an image topic, before the first message is read.

        Raises:
            UserError: the bag is damaged.
        """
        root = topic.removesuffix("/compressed").rpartition("/")[0]
        info_topic = f"{root}/camera_info"
        info = _first_camera_info(reader, info_topic)
        possible = [name for name in outputs if name != "camera_info" or info is not None]
        return cls(topic, camera_name(topic), possible, info_topic, info)

    def hear(self, connection: Connection, raw: bytes) -> None:
        """Take a message's CameraInfo, if it is this camera's; a damaged one is passed over."""
        if (connection.topic, connection.msgtype) == (self.info_topic, CAMERA_INFO):
            with suppress(ImageError):
                self.info = deserialize(raw, CAMERA_INFO)

    def look(
        self,
        detector: Detector,
        connection: Connection,
        timestamp: int,
        raw: bytes,
        grey_range: Range | None,
    ) -> Found:
        """Header and picture of the next frame, and what is found in it; raises many kinds."""
        message = deserialize(raw, connection.msgtype)
        image = message_to_rgb(message, connection.msgtype, connection.topic, grey_range)
        found = detector.detect(image, before=self.levels.before(timestamp))
        self.levels.add(found.level, timestamp)
        return message.header, image, found

    def result(self, found: Future[Found], info: Any) -> FrameResult:
        """The messages of what is found, or why there is none; `info` is what held then."""
        try:
            header, image, detection = found.result()
        except Exception as error:  # models and the libraries below them raise many kinds
            return FrameResult(error=one_line(error), unreadable=isinstance(error, ImageError))
        messages = frame_messages(self.outputs, header, image, detection, info)
        return FrameResult(
            dict(messages),
            level=detection.level,
            score=detection.score,
            anomalous=float(detection.mask.mean()),
            timings=detection.timings,
        )


@dataclass
class _Message:
    """A message on its way through; `camera` is None unless it is a frame.

    Of a frame there is either `known`, or `found`, from the detector.
    """

    connection: Connection
    timestamp: int
    raw: bytes
    camera: Camera | None = None
    known: FrameResult | None = None
    found: Future[Found] | None = None


class BagPass:
    """One pass over a bag.

    Args:
        reader: the open input.
        writer: the open, empty output.
        topics: of the cameras, by :func:`frames.camera_name` of different ones.
        outputs: names from :data:`OUTPUTS`.
        grey_range: see `images.to_8_bit`.
        known: gives the result of the next frame of a topic where it is finished already, which
            frames are from the first one on; else None.
        keep: takes the results of others, in the bag's order.
    """

    def __init__(
        self,
        reader: BagReader,
        writer: Writer,
        topics: Sequence[str],
        outputs: Sequence[str],
        grey_range: Range | None = None,
        *,
        known: Callable[[str], FrameResult | None] = lambda _: None,
        keep: Callable[[FrameResult], object] = lambda _: None,
    ) -> None:
        self.grey_range = grey_range
        self.reader, self.writer, self.known, self.keep = reader, writer, known, keep
        cameras = [Camera.of(reader, topic, outputs) for topic in topics]
        added = {output_topic(camera.name, name) for camera in cameras for name in camera.outputs}
        replaced = sorted({c.topic for c in reader.connections} & added)
        self.copies = _add_copies(reader, writer, leave_out=replaced)
        self.targets = {camera.topic: self._add_outputs(camera) for camera in cameras}
        self.cameras = {camera.topic: camera for camera in cameras}
        reports = {camera.topic: CameraReport(camera.topic, camera.name) for camera in cameras}
        self.reports = reports
        self.report = BagReport(list(reports.values()), replaced=replaced)
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
        for connection, timestamp, raw in self.reader.messages(wanted):
            message = _Message(connection, timestamp, raw, self.cameras.get(connection.topic))
            if message.camera is not None:
                message.known = self.known(connection.topic)
                if message.known is None:
                    frame = (connection, timestamp, raw, self.grey_range)
                    message.found = pool.submit(message.camera.look, detector, *frame)
                elif not message.known.error:
                    message.camera.levels.add(message.known.level, timestamp)
            yield message

    def _copy(self, message: _Message) -> None:
        connection = message.connection
        self.writer.write(self.copies[connection.id], message.timestamp, message.raw)
        self.report.copied += 1
        for camera in self.cameras.values():
            camera.hear(connection, message.raw)

    def _add_results(
        self, message: _Message, camera: Camera, number: int, skip_errors: bool
    ) -> None:
        """Write the outputs of frame `number`, known or the detector's."""
        report, targets = self.reports[camera.topic], self.targets[camera.topic]
        if message.found is None:
            assert message.known is not None
            result = message.known
            self.report.resumed += 1
        else:
            result = camera.result(message.found, camera.info)
        if result.error:
            name = f"frame {number} of '{report.topic}'"
            if not skip_errors:
                raise UserError(f"{name}: {result.error}")
            reason = "unreadable" if result.unreadable else "failed in the models"
            self.report.tally.skip(reason, f"{name}: {result.error}")
        if message.found is not None:
            self.keep(result)
        for name, data in result.messages.items():
            self.writer.write(targets[name], message.timestamp, data)
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

    def _add_outputs(self, camera: Camera) -> dict[str, Connection]:
        return {
            name: self.writer.add_connection(
                output_topic(camera.name, name),
                OUTPUTS[name],
                typestore=typestore(),
                offered_qos_profiles=[output_qos()],
            )
            for name in camera.outputs
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


def _first_camera_info(reader: BagReader, topic: str) -> Any:
    """So that frames before the first CameraInfo have one, too."""
    connections = [c for c in reader.connections if (c.topic, c.msgtype) == (topic, CAMERA_INFO)]
    # Asked for the messages of no connection, a reader gives those of all.
    for _, _, raw in reader.messages(connections) if connections else ():
        with suppress(ImageError):
            return deserialize(raw, CAMERA_INFO)
    return None


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
