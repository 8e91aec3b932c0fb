"""Many recordings, or a long one, shared out over processes: the bags are those of one process.

A recording is a piece of work; a camera with many frames is cut into slices of some, each a piece
of its own, and what is found in them is written into the bag when all are done.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, TypeAlias

from rosbags.interfaces import Connection

from anomaly_detector_ros.bags.journal import FrameResult, read_results, write_result
from anomaly_detector_ros.bags.outputs import OUTPUTS
from anomaly_detector_ros.bags.passes import BagReport, Camera, Found
from anomaly_detector_ros.bags.processing import (
    cannot_write,
    check_outputs,
    choose_topics,
    describe_input,
    describe_settings,
    write_bag,
)
from anomaly_detector_ros.calibration.level import StreamLevels, levels_before
from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.imaging.images import Range
from anomaly_detector_ros.runtime.files import replace_file
from anomaly_detector_ros.runtime.progress import Progress, silent
from anomaly_detector_ros.runtime.worklist import WorkList, find_summary, share
from anomaly_detector_ros.sources.recordings import BagReader
from anomaly_detector_ros.sources.tally import Tally

if TYPE_CHECKING:
    from anomaly_detector_ros.detector import Detector

SLICE = 32
"""Frames of a camera in a slice: what a killed process loses, at most."""
RESULTS, SUMMARY = "results.jsonl", "summary.json"


_Frame: TypeAlias = tuple[tuple[Connection, int, bytes], Any]


@dataclass
class Recording:
    """A recording to process.

    Attributes:
        source: where it is.
        output: bag directory to make.
        topics: of its cameras; none where it cannot be read, which is told when its turn comes.
        frames: how many each camera has, as the recording declares.
        about: what tells it from another.
    """

    source: Path
    output: Path
    topics: list[str] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    about: Any = None

    @classmethod
    def find(cls, source: Path, output: Path, topics: Sequence[str]) -> Recording:
        """The recording at `source`.

        Raises:
            UserError: it has no camera topic, not that, or several of which none is chosen.
        """
        with ExitStack() as stack:
            try:
                reader = stack.enter_context(BagReader(source))
            except UserError:
                return cls(source, output)
            chosen = choose_topics(reader, topics)
            counts = {c.topic: c.msgcount for c in reader.connections}
            about = describe_input(source, reader)
            return cls(source, output, chosen, [counts[topic] for topic in chosen], about)


@dataclass(frozen=True)
class _Slice:
    """Frames of one camera: from `start` on, up to `stop`, or all where that is None."""

    recording: Recording
    topic: str
    start: int
    stop: int | None


class SharedBags:
    """Recordings processed by all processes that are given the same ones.

    Args:
        recordings: in the order in which they are begun.
        folder: for ``results.jsonl`` and ``summary.json``; where there is one recording it may be
            its bag.
        outputs: names from :data:`OUTPUTS`.
        skip_errors: skip and count frames and recordings that cannot be read, rather than stop.
        grey_range: see `images.to_8_bit`.

    Raises:
        UserError: unknown output.

    Attributes:
        work: directory of the work list.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        folder: Path,
        *,
        outputs: Sequence[str] = tuple(OUTPUTS),
        skip_errors: bool = True,
        grey_range: Range | None = None,
    ) -> None:
        check_outputs(outputs)
        self.recordings, self.folder = list(recordings), folder
        # Beside a bag, which appears when it is whole; else in the folder, which machines share.
        self._alone = any(each.output == folder for each in recordings)
        beside = folder.absolute().with_name(f"{folder.name}.shared")
        self.work = beside if self._alone else folder / ".shared"
        self.outputs, self.skip_errors, self.grey_range = outputs, skip_errors, grey_range
        self._slices: dict[str, _Slice] = {}
        self._chains: list[list[str]] = []
        self._sizes: dict[str, int] = {}  # frames of each piece
        self._stream: _Stream | None = None
        self._unneeded: list[Path] = []
        for number, recording in enumerate(self.recordings):
            self._sizes[str(number)] = sum(n for n in recording.frames if n <= SLICE)
            for index, topic in enumerate(recording.topics):
                if (frames := recording.frames[index]) > SLICE:
                    self._cut(f"{number}-{index}", recording, topic, frames)

    def _cut(self, name: str, recording: Recording, topic: str, frames: int) -> None:
        chain = []
        for start in range(0, frames, SLICE):
            piece, stop = f"{name}-{start // SLICE}", start + SLICE
            # The last one takes what there is: what is declared may be too little.
            last = stop >= frames
            self._slices[piece] = _Slice(recording, topic, start, None if last else stop)
            self._sizes[piece] = min(stop, frames) - start
            chain.append(piece)
        self._chains.append(chain)

    def job(self, profile: Any, threshold: float) -> dict[str, Any]:
        """What the results depend on."""
        settings = describe_settings(self.outputs, profile, threshold, self.grey_range)
        names = [[r.output.name, r.topics, r.frames, r.about] for r in self.recordings]
        return {"list of recordings": names, **settings}

    def run(
        self,
        detector: Detector,
        progress: Progress = silent,
        add: Callable[[Path, BagReport], object] = lambda *_: None,
    ) -> dict[str, Any]:
        """Process them together with the other processes; gives what `SUMMARY` holds.

        Args:
            detector: runs on every frame.
            progress: called with frames done, by all processes, and frames in all.
            add: adds to a bag's directory before that appears under its name.

        Raises:
            UserError: something cannot be written or, unless errors are skipped, read; another job
                has left work there.
        """
        self.detector, self.progress, self.add = detector, progress, add
        job = self.job(detector.profile, detector.threshold)
        used = self.folder.exists() and any(self.folder.iterdir())
        if used and not (self.work.exists() or find_summary(self.folder / SUMMARY, job)):
            raise UserError(f"'{self.folder}' exists already: remove it or give another output")
        writes = {str(n): self._slices_of(each) for n, each in enumerate(self.recordings)}
        chains = [*self._chains, *([name] for name in writes)]
        try:
            with ExitStack() as stack:
                self._open = stack
                return share(
                    self.work,
                    job,
                    self.folder / SUMMARY,
                    chains,
                    writes,
                    self._do,
                    self._merge,
                )
        except (OSError, sqlite3.Error) as error:
            raise cannot_write(self.folder, error) from error

    def _slices_of(self, recording: Recording) -> dict[str, _Slice]:
        return {n: each for n, each in self._slices.items() if each.recording is recording}

    def _do(self, work: WorkList, piece: str) -> dict[str, Any]:
        for file in self._unneeded:
            file.unlink(missing_ok=True)
        self._unneeded = []
        part = self._slices.get(piece)
        try:
            return self._look(work, piece, part) if part else self._write(work, piece)
        except UserError as error:
            if self._alone or not self.skip_errors:
                raise
            return {"error": one_line(error)}

    def _look(self, work: WorkList, piece: str, part: _Slice) -> dict[str, Any]:
        """What is found in a slice, in a file of its own."""
        stream = self._at(work, piece, part)
        count = 0

        def write(file: Path) -> None:
            nonlocal count
            with file.open("wb") as out:
                for result in stream.results(part.stop):
                    count += 1
                    if result.error and not self.skip_errors:
                        number = part.start + count
                        raise UserError(f"frame {number} of '{part.topic}': {result.error}")
                    write_result(out, result)
                    self._tell(work, count)

        replace_file(_file(work, piece), write)
        self._stream = stream  # which is good for the next slice unless it failed
        return {"levels": stream.camera.levels.state}

    def _at(self, work: WorkList, piece: str, part: _Slice) -> _Stream:
        """The camera's stream where the slice begins, with the levels that it has there."""
        key = part.recording.source, part.topic
        stream, self._stream = self._stream, None
        if stream is None or stream.key != key:
            self._open.close()
            stream = _Stream(*key, self.outputs, self.grey_range, self.detector)
            self._open.enter_context(stream.reader)
        if stream.at == part.start:
            return stream
        group, _, number = piece.rpartition("-")
        before = f"{group}-{int(number) - 1}"
        known = work.result(before) if before in work.done else {}
        levels = StreamLevels()
        if "levels" in known:
            levels = StreamLevels(*known["levels"])
        elif self.detector.distance.frame_level:
            levels = levels_before(part.start, lambda first: stream.levels(first, part.start))
        stream.go_to(part.start)
        stream.camera.levels = levels
        return stream

    def _write(self, work: WorkList, piece: str) -> dict[str, Any]:
        """The bag of a recording: of its slices where it has any, else from the detector."""
        recording = self.recordings[int(piece)]
        parts = self._slices_of(recording)
        for name in parts:
            if "error" in (found := work.result(name)):
                raise UserError(found["error"])
        known = {
            topic: chain.from_iterable(
                read_results(_file(work, name))
                for name, part in parts.items()
                if part.topic == topic
            )
            for topic in recording.topics
        }
        private = Path(mkdtemp(prefix=f".{piece}.", dir=work.directory))
        try:
            made = private / recording.output.name
            with BagReader(recording.source) as reader:
                report = write_bag(
                    reader,
                    made,
                    self.detector,
                    choose_topics(reader, recording.topics),
                    self.outputs,
                    skip_errors=self.skip_errors,
                    grey_range=self.grey_range,
                    progress=lambda done, *_: self._tell(work, 0 if parts else done),
                    known=lambda topic: next(known[topic], None),
                )
            self.add(made, report)
            recording.output.parent.mkdir(parents=True, exist_ok=True)
            try:
                made.rename(recording.output)
            except OSError:  # there is one, of a process that was killed right behind this
                if not recording.output.is_dir():
                    raise
        finally:
            shutil.rmtree(private, ignore_errors=True)
        self._unneeded = [_file(work, name) for name in parts]  # once the result is kept
        report.resumed = 0
        line = report.to_dict(recording.source, recording.output)
        return {"line": line, "tally": report.tally.state, "barren": report.barren}

    def _merge(self, work: WorkList) -> dict[str, Any]:
        tally, lines = Tally(), []
        for number, recording in enumerate(self.recordings):
            found = work.result(str(number))
            if "line" in found:
                lines.append(found["line"])
                tally.add(found["tally"])
            if why := found.get("error") or found["barren"]:
                tally.failed[str(recording.source)] = why
        text = "".join(json.dumps(line) + "\n" for line in lines)
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(self.folder / RESULTS, lambda partial: partial.write_text(text))
        return {"recordings": len(lines), **tally.to_dict(), "tally": tally.state}

    def _tell(self, work: WorkList, here: int) -> None:
        """Frames done by all processes, as far as this one knows, and by it in its piece."""
        total = sum(self._sizes.values())
        self.progress(here + sum(self._sizes[piece] for piece in work.done), total)


class _Stream:
    """What is found in the frames of one camera, from any frame on.

    Args:
        source: recording.
        topic: the camera's.
        outputs: names from :data:`OUTPUTS`.
        grey_range: see `images.to_8_bit`.
        detector: runs on the frames.

    Attributes:
        reader: of the recording; to be entered before anything else.
        key: what it is of.
        at: number of the next frame.
        camera: as it is before that.
    """

    camera: Camera

    def __init__(
        self,
        source: Path,
        topic: str,
        outputs: Sequence[str],
        grey_range: Range | None,
        detector: Detector,
    ) -> None:
        self.reader, self.key, self.at = BagReader(source), (source, topic), -1
        self._outputs, self._grey_range, self._detector = outputs, grey_range, detector
        self._frames: Iterator[_Frame] = iter(())

    def go_to(self, frame: int) -> None:
        """Pass over the frames up to this one, from the beginning if it lies behind."""
        if not 0 <= self.at <= frame:
            self.camera = Camera.of(self.reader, self.key[1], self._outputs)
            self._frames, self.at = self._read(), 0
        for _ in islice(self._frames, frame - self.at):
            pass
        self.at = frame

    def results(self, stop: int | None) -> Iterator[FrameResult]:
        """The results of the frames from here on, the next one in the detector meanwhile."""
        waiting: deque[tuple[Future[Found], Any]] = deque()
        with ThreadPoolExecutor(1, "detector") as pool:
            for frame, info in islice(self._frames, None if stop is None else stop - self.at):
                self.at += 1
                found = pool.submit(self.camera.look, self._detector, *frame, self._grey_range)
                waiting.append((found, info))
                if len(waiting) > 1:
                    yield self.camera.result(*waiting.popleft())
            for each in waiting:
                yield self.camera.result(*each)

    def levels(self, first: int, stop: int) -> Iterator[tuple[float, int]]:
        """Level and stamp of the good ones of these frames."""
        self.go_to(first)
        for frame, _ in islice(self._frames, stop - first):
            self.at += 1
            try:
                _, _, found = self.camera.look(self._detector, *frame, self._grey_range)
            except Exception:  # told when its turn comes
                continue
            yield found.level, frame[1]

    def _read(self) -> Iterator[_Frame]:
        """Each frame, with the CameraInfo that holds when it comes."""
        camera = self.camera
        wanted = [
            c for c in self.reader.connections if c.topic in (camera.topic, camera.info_topic)
        ]
        for connection, timestamp, raw in self.reader.messages(wanted):
            camera.hear(connection, raw)
            if connection.topic == camera.topic:
                yield (connection, timestamp, raw), camera.info


def _file(work: WorkList, piece: str) -> Path:
    """Where what is found in a slice lies."""
    return work.directory / f"{piece}.frames"
