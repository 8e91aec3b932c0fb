"""What ~/teach, ~/undo_lesson and clicks do: lessons for the running detectors."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
from geometry_msgs.msg import Point, PointStamped
from rclpy.clock import Clock
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import ImageMarker, Marker

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.ros.camera import LOG_INTERVAL, Picture
from anomaly_detector_ros.ros.output import Output
from anomaly_detector_ros.ros.parameters import Parameters
from anomaly_detector_ros.ros.shown_frames import Shown, ShownFrames

if TYPE_CHECKING:
    from rclpy.impl.rcutils_logger import RcutilsLogger

    from anomaly_detector_ros.detection import Detection
    from anomaly_detector_ros.lessons.journal import Lesson, Lessons
    from anomaly_detector_ros.lessons.teaching import Look, Teaching
    from anomaly_detector_ros.ros.detectors import Detectors

CLICKED, ACCEPT, REJECT = "/clicked_point", "accept", "reject"
MOST_WAITING = 16
"""Clicks that may wait for their turn; more are refused."""


@dataclass
class _Collecting:
    """Frames that ~/teach takes."""

    until: float
    apart: float
    most: int
    looks: dict[str, list[Look]]
    last: dict[str, float] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return sum(map(len, self.looks.values()))

    def add(self, camera: str, look: Look, now: float) -> None:
        # Less than the whole distance, as frames do not come when they are due.
        if now - self.last.get(camera, float("-inf")) < 0.75 * self.apart:
            return
        self.looks[camera].append(look)
        self.last[camera] = now
        if all(len(each) >= self.most for each in self.looks.values()):
            self.until = now


class TeachingService:
    """Teaches the running detectors.

    Callbacks return at once; the work is done in the detector's thread, in pieces between two
    images. What becomes of it is logged, and `report` tells of it on the diagnostics.

    Args:
        cameras: their names.
        parameters: the node's, in force at any time.
        node: the node's fully qualified name, of which the file's name is made by default.
        shown: takes the frames that were published.
        clock: the node's.
        submit: has a function called in the detector's thread.
        detectors: those in use.
        threshold: the threshold in force for a camera.
        changed: called when other lessons are in force.
        marker: answers points in space.
        outlines: show what was taken in the frames of a camera, by its name.
        logger: the node's.
    """

    def __init__(
        self,
        cameras: Sequence[str],
        parameters: Parameters,
        node: str,
        *,
        shown: ShownFrames,
        clock: Clock,
        submit: Callable[[Callable[[], None]], None],
        detectors: Callable[[], Detectors],
        threshold: Callable[[str], float],
        changed: Callable[[], None],
        marker: Output,
        outlines: Mapping[str, Output],
        logger: RcutilsLogger,
    ) -> None:
        self._cameras, self._parameters = list(cameras), parameters
        self._submit, self._detectors, self._threshold = submit, detectors, threshold
        self._changed, self._marker, self._outlines = changed, marker, outlines
        self._logger = logger
        self._lock = threading.RLock()
        self._shown, self._clock = shown, clock
        self._collecting: _Collecting | None = None
        self._working = ""
        self._waiting = self._undone = 0
        self._answer, self._told = "", float("-inf")
        self._refused = ""
        self._lessons: Lessons | None = None
        self._written: tuple[int, int] | None = None
        self._file = self._choose_file(node)
        self._load()

    def _choose_file(self, node: str) -> Path:
        from anomaly_detector_ros.lessons.journal import default_file

        given = self._parameters["lessons"] or self._detectors().lessons_file
        return Path(os.path.expanduser(given)) if given else default_file(node)

    def _load(self) -> None:
        """Takes the lessons of the file into use, or says why it cannot."""
        from anomaly_detector_ros.lessons.journal import remove_partial

        detectors = self._detectors()
        try:
            if not self._file.exists():
                return
            remove_partial(self._file)
            lessons = detectors.read_lessons(self._file)
            detectors.teach(lessons)
            self._lessons, self._written = lessons, _version(self._file)
            self._logger.info(f"{_described(lessons)} in force: '{self._file}'")
        except (UserError, OSError) as error:
            self._refused = one_line(error)
            self._logger.error(f"no lessons are in force: {self._refused}")

    # -- asked for, in any thread ------------------------------------------------------------------

    def begin(self) -> str:
        """Takes frames from now on as nominal. Returns what is going to happen, in one line.

        Raises:
            UserError: it cannot be done now.
        """
        seconds, frames = self._parameters["teach_seconds"], self._parameters["teach_frames"]
        self._check()
        with self._lock:
            if self.busy:
                raise UserError(f"already teaching: {self._progress()}")
            self._collecting = _Collecting(
                time.monotonic() + seconds,
                seconds / frames,
                frames,
                {name: [] for name in self._cameras},
            )
        return (
            f"frames of the next {seconds:g} s, up to {frames} of {', '.join(self._cameras)}, are "
            f"taken as nominal: drive; then '{self._file}' is written and in force"
        )

    def undo(self) -> str:
        """Takes the last lesson back, from the next image on. Returns which, in one line.

        Raises:
            UserError: there is none, or the file cannot be written.
        """
        self._check()
        with self._lock:
            lessons, last = self._current().undone()
            self._put(lessons)
            self._undone += 1
        self._submit(self._apply)
        text = f"undone: {_named(last)}; {_described(lessons)} in force"
        self._tell(text)
        return text

    def cancel(self) -> None:
        """Forgets the frames seen and collected; lessons stay."""
        with self._lock:
            if self._collecting is not None:
                self._tell(f"teaching was cancelled: {self._progress()}")
            self._collecting = None
        self._shown.clear()

    def click(self, camera: str, message: PointStamped, nominal: bool) -> None:
        """A pixel of a camera's frame was pointed at: x to the right, y down; stamp 0: the last."""
        topic = f"~/{camera}/{ACCEPT if nominal else REJECT}"

        def work() -> None:
            shown, row, column = self._shown.at_pixel(camera, message)
            self._take(camera, shown, row, column, nominal, topic)

        self._queue(work)

    def click_in_space(self, message: PointStamped) -> None:
        """A point in space was pointed at, as RViz publishes them: a false alarm stands there."""
        arrived = self._clock.now().nanoseconds

        def work() -> None:
            camera, shown, row, column = self._shown.in_space(message, arrived)
            self._take(camera, shown, row, column, True, CLICKED)
            self._mark(message)

        self._queue(work)

    def tick(self) -> None:
        """Once a second: ends collecting in time, even where no frame comes any more."""
        with self._lock:
            collecting = self._collecting
            if collecting is None or time.monotonic() < collecting.until:
                return
            self._collecting = None
            self._working = "begins"
        self._submit(lambda: self._finish(collecting))

    @property
    def busy(self) -> bool:
        """Whether frames are being collected or learnt from."""
        return self._collecting is not None or bool(self._working)

    def report(self) -> tuple[str, dict[str, str]]:
        """For the diagnostics of the node: a warning, empty if there is none, and details."""
        with self._lock:
            values = {"lessons": _described(self._lessons), "lessons file": str(self._file)}
            if self.busy:
                values["teaching"] = self._progress()
            if self._answer:
                values["last lesson"] = self._answer
            return (f"no lessons are in force: {self._refused}" if self._refused else ""), values

    def _progress(self) -> str:
        if self._collecting is None:
            return f"learning: {self._working}"
        seconds = max(0.0, self._collecting.until - time.monotonic())
        return f"{self._collecting.count} frames, {seconds:.0f} s to go"

    def _check(self) -> None:
        if self._refused:
            raise UserError(
                f"the file is left as it is ({self._refused}): set the parameter lessons to another"
            )

    # -- frames, in the detector's thread ----------------------------------------------------------

    def frame(self, camera: str, picture: Picture, detection: Detection) -> None:
        """Remembers a frame that was published, and takes it while ~/teach collects.

        Never raises.
        """
        if detection.features is None:
            return
        try:
            now = time.monotonic()
            look = self._look(camera, picture, detection)
            self._shown.add(camera, now, picture, detection, look)
            with self._lock:
                if self._collecting is not None:
                    self._collecting.add(camera, look, now)
        except Exception as error:
            self._tell(f"a frame was not remembered: {one_line(error)}")

    def _look(self, camera: str, picture: Picture, detection: Detection) -> Look:
        from anomaly_detector_ros.lessons.teaching import Look

        stamp = picture.header.stamp
        name = f"{camera} {stamp.sec}.{stamp.nanosec:09d}"
        return Look.of(name, picture.pixels, detection, self._threshold(camera))

    # -- lessons, in the detector's thread ---------------------------------------------------------

    def _finish(self, collecting: _Collecting) -> None:
        """Learns from what was collected, piece by piece."""
        from anomaly_detector_ros.lessons.teaching import Teaching

        try:
            looks = [look for each in collecting.looks.values() for look in each]
            if not looks:
                raise UserError("no frame came: see what the cameras' diagnostics say")
            detector = self._detectors().load()
            current = self._current()
            teaching = Teaching(
                looks,
                detector.distance,
                current.taught(),
                detector.rescore,
                most=current.room,
            )
            cameras = ", ".join(name for name, each in collecting.looks.items() if each)
            self._advance(teaching, teaching.work(), 0, cameras)
        except Exception as error:
            self._fail(error)

    def _advance(self, teaching: Teaching, work: Iterator[None], done: int, cameras: str) -> None:
        try:
            try:
                next(work)
            except StopIteration:
                self._conclude(teaching, cameras)
                return
            with self._lock:
                self._working = f"{done + 1} of {teaching.count}"
            self._submit(lambda: self._advance(teaching, work, done + 1, cameras))
        except Exception as error:
            self._fail(error)

    def _conclude(self, teaching: Teaching, cameras: str) -> None:
        lesson = teaching.lesson(camera=cameras, asked_by="~/teach")
        with self._lock:
            self._put(self._current().added(lesson))
            self._working = ""
        self._apply()
        out = f"; left out, an anomaly seems to stand there: {', '.join(lesson.left_out)}"
        scale = "" if lesson.scores else "; too few frames to fit what heatmap values mean"
        self._tell(f"taught: {_named(lesson)}{out if lesson.left_out else ''}{scale}")

    def _fail(self, error: Exception) -> None:
        with self._lock:
            self._working = ""
        self._tell(f"not taught: {one_line(error)}")

    def _queue(self, work: Callable[[], None]) -> None:
        with self._lock:
            if self._waiting >= MOST_WAITING:
                self._tell(f"not taken: {MOST_WAITING} clicks wait already, click again later")
                return
            self._waiting += 1
            undone = self._undone

        def run() -> None:
            try:
                self._check()
                if undone != self._undone:
                    raise UserError("a lesson was undone after this click: click again")
                work()
            except Exception as error:
                self._tell(f"not taken: {one_line(error)}")
            finally:
                with self._lock:
                    self._waiting -= 1

        self._submit(run)

    def _take(
        self, camera: str, shown: Shown, row: int, column: int, nominal: bool, asked_by: str
    ) -> None:
        """Makes a lesson of what lies at a pixel."""
        from anomaly_detector_ros.lessons.journal import Lesson
        from anomaly_detector_ros.lessons.teaching import point_at, thumbnail, vectors_at

        kind: Literal["accept", "reject"] = "accept" if nominal else "reject"
        detector = self._detectors().detector(camera) or self._detectors().load()
        height, width = shown.segments.shape
        grid = shown.look.features.shape[-2:]
        with self._lock:
            current = self._current()
            pointed = point_at(shown.segments, grid, row, column)
            vectors = vectors_at(shown.look.features, pointed.cells)
            before = self._alarmed(camera, shown, current, pointed.region)
            if before != nominal and not (nominal and len(detector.distance.unknown(vectors, 1))):
                raise UserError(
                    f"what is at ({column}, {row}) {'raises no alarm' if nominal else 'does'} "
                    "already"
                )
            # At first what it covers, so that no neighbour is taken along without need.
            for touched in (False, True):
                if touched:
                    pointed = point_at(shown.segments, grid, row, column, touched=True)
                    vectors = vectors_at(shown.look.features, pointed.cells)
                lesson = Lesson(
                    kind,
                    vectors,
                    camera,
                    asked_by,
                    about=f"({column}, {row}) of {width}x{height}, {shown.look.name}",
                    thumbnails=(thumbnail(shown.picture.pixels, pointed.region),),
                )
                lessons = current.added(lesson)
                done = self._alarmed(camera, shown, lessons, pointed.region) != nominal
                if done:
                    break
            self._put(lessons)
        self._apply()
        self._outline(camera, shown, pointed.region, nominal)
        still = "" if done else "; it still " + ("raises an alarm" if nominal else "raises none")
        self._tell(f"taken: {_named(lesson)}{still}")

    def _alarmed(self, camera: str, shown: Shown, lessons: Lessons, region: np.ndarray) -> bool:
        """Whether most of a region of a frame would raise an alarm with these lessons."""
        detector = self._detectors().detector(camera) or self._detectors().load()
        taught = detector.distance.taught(lessons.taught())
        heatmap = detector.alarms(shown.look, taught, camera)
        size = heatmap.shape[::-1]
        inside = cv2.resize(region.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
        if not inside.any():
            rows, columns = np.nonzero(region)
            scale = heatmap.shape[0] / region.shape[0], heatmap.shape[1] / region.shape[1]
            inside[int(rows.mean() * scale[0]), int(columns.mean() * scale[1])] = True
        return float(np.median(heatmap[inside])) >= self._threshold(camera)

    def _apply(self) -> None:
        """Takes the lessons into use from the next image on."""
        with self._lock:
            lessons = self._current()
        self._detectors().teach(lessons)
        self._changed()

    def _current(self) -> Lessons:
        if self._lessons is None:
            self._lessons = self._detectors().read_lessons(None)
        return self._lessons

    def _put(self, lessons: Lessons) -> None:
        """Writes the journal; what it says counts only once it is on the disk."""
        if _version(self._file) != self._written:
            raise UserError(
                f"another process changed '{self._file}': configure the node anew to read it"
            )
        lessons.save(self._file)
        self._lessons, self._written = lessons, _version(self._file)

    # -- answers -----------------------------------------------------------------------------------

    def _tell(self, text: str) -> None:
        now = time.monotonic()
        with self._lock:
            again = text == self._answer and now - self._told < LOG_INTERVAL
            self._answer = text
            if again:  # a thousand clicks may have the same answer
                return
            self._told = now
        # Each from a line of its own: rclpy refuses another severity from the same one.
        if text.startswith(("not ", "a frame")):
            self._logger.warning(text)
        else:
            self._logger.info(text)

    def _outline(self, camera: str, shown: Shown, region: np.ndarray, nominal: bool) -> None:
        output = self._outlines[camera]
        if not output.wanted:
            return
        found, _ = cv2.findContours(
            region.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
        )
        longest = max(found, key=len)
        output.send(
            ImageMarker(
                header=shown.picture.header,
                ns=ACCEPT if nominal else REJECT,
                type=ImageMarker.POLYGON,
                scale=2.0,
                outline_color=_colour(nominal),
                points=[Point(x=float(x), y=float(y)) for ((x, y),) in longest],
            )
        )

    def _mark(self, message: PointStamped) -> None:
        if not self._marker.wanted:
            return
        marker = Marker(header=message.header, ns=ACCEPT, type=Marker.SPHERE, color=_colour(True))
        marker.pose.position = message.point
        marker.pose.orientation.w = 1.0
        marker.scale.x = marker.scale.y = marker.scale.z = 0.3
        marker.lifetime.sec = 5
        self._marker.send(marker)


def _version(file: Path) -> tuple[int, int] | None:
    """Tells one content of a file from another; None: there is no file."""
    try:
        state = file.stat()
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns


def _described(lessons: Lessons | None) -> str:
    if lessons is None or not lessons.entries:
        return "no lessons"
    return f"{len(lessons.entries)} lessons with {lessons.vectors} vectors"


def _named(lesson: Lesson) -> str:
    frames = f"{lesson.frames} frames, " if lesson.kind == "teach" else ""
    return f"{lesson.kind}, {frames}{len(lesson.vectors)} vectors, {lesson.about}"


def _colour(nominal: bool) -> ColorRGBA:
    return ColorRGBA(r=0.0 if nominal else 1.0, g=1.0 if nominal else 0.0, b=0.0, a=1.0)
