"""Frames of folders, pictures, videos and recordings, the same for every command."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.imaging.images import ImageError, Range, is_picture, read_rgb
from anomaly_detector_ros.sources.folders import files_below, is_image, without_labels
from anomaly_detector_ros.sources.recordings import (
    BagReader,
    choose_topic,
    is_recording,
    read_frames,
)
from anomaly_detector_ros.sources.tally import Tally
from anomaly_detector_ros.sources.videos import count_frames, is_video, read_video


@dataclass(frozen=True)
class Source:
    """A picture file, a video or a recording.

    Attributes:
        file: where it is; a directory for a rosbag2 one.
        kind: what it is.
        topic: camera topic of a recording.
    """

    file: Path
    kind: Literal["picture", "video", "recording"]
    topic: str | None = None

    def expected(self) -> int:
        """How many frames there may be, for progress alone: headers are no truth."""
        if self.kind == "video":
            return count_frames(self.file)
        if self.kind == "recording":
            try:
                with BagReader(self.file) as reader:
                    return sum(c.msgcount for c in reader.connections if c.topic == self.topic)
            except UserError:  # told when it is read
                return 1
        return 1


@dataclass(frozen=True)
class Frame:
    """A frame that could be read.

    Attributes:
        source: what it is of.
        index: its number in a video or recording, from 0; None for a picture.
        pixels: uint8 RGB (H, W, 3).
    """

    source: Source
    index: int | None
    pixels: np.ndarray

    @property
    def name(self) -> str:
        """As messages call it."""
        return frame_name(self.source, self.index)


def frame_name(source: Source, index: int | None) -> str:
    """A frame as messages call it."""
    return f"'{source.file}'" if index is None else f"'{source.file}' frame {index}"


def find_sources(
    given: Iterable[Path], topic: str | None = None, *, results: Path | None = None
) -> list[Source]:
    """Every picture, video and recording among what is given, each once.

    Folders are searched as `folders.files_below` does; of a labelled data set the images are taken.
    In folders pictures are known by their suffix, all else by its content.

    Args:
        given: files, folders and recordings.
        topic: camera topic of recordings; None for their only one.
        results: directory of results, which are left out of folders.

    Raises:
        UserError: a path is missing, or a folder without any; no or several camera topics.
    """
    found: dict[Path, Source] = {}
    for path in given:
        for source in _sources_at(path, topic, results):
            found.setdefault(source.file.resolve(), source)
    return list(found.values())


def find_recordings(given: Iterable[Path], *, results: Path | None = None) -> list[Path]:
    """Every recording among what is given and in folders of it, each once.

    Args:
        given: recordings and folders.
        results: directory of results, which is left out of folders.

    Raises:
        UserError: a path is missing, or a folder without any.
    """
    found: dict[Path, Path] = {}
    for path in given:
        below = [path]
        if path.is_dir() and not is_recording(path):
            inside = results.resolve() if results else None
            below = [f for f in _files(path) if inside not in f.resolve().parents]
            below = [f for f in below if is_recording(f)]
            if not below:
                raise UserError(f"no recordings in '{path}': give rosbag2 directories or files")
        elif not path.exists():
            raise UserError(
                f"there is no bag '{path}': give a rosbag2 directory, .mcap or .db3 file"
            )
        for each in below:
            found.setdefault(each.resolve(), each)
    return list(found.values())


def read_sources(
    sources: Iterable[Source],
    tally: Tally,
    *,
    stride: int = 1,
    grey_range: Range | None = None,
) -> Iterator[Frame]:
    """The frames of all sources that can be read; what cannot be is counted.

    Args:
        sources: in the order in which they are read.
        tally: takes frames that are skipped and sources that are not whole.
        stride: every so many frames of videos and recordings.
        grey_range: see `images.to_8_bit`.

    Raises:
        UserError: something cannot be read, and the tally is to stop at that.
    """
    for source in sources:
        frames = _frames(source, stride, grey_range)
        yield from _readable(source, frames, tally)


class FrameStream:
    """The frames of a video or recording, from any number on.

    Args:
        source: what they are of.
        grey_range: see `images.to_8_bit`.

    Attributes:
        at: number of the frame behind the last one that was read.
    """

    def __init__(self, source: Source, grey_range: Range | None = None) -> None:
        self.source, self._grey_range = source, grey_range
        self.at = 0
        self._frames = _frames(source, 1, grey_range)

    def read(self, start: int, stop: int | None, tally: Tally) -> Iterator[Frame]:
        """The frames that can be read of those from `start` on up to `stop`, or to the last one.

        They are found at once if they follow on the last ones, else the source is begun anew and
        those before them are passed over.

        Args:
            start: number of the first.
            stop: number behind the last.
            tally: see `read_sources`. That not one frame of a source can be read is counted where
                `start` is 0.

        Raises:
            UserError: see `read_sources`.
        """
        if start != self.at:
            self._frames = _frames(self.source, 1, self._grey_range, start)
            self.at = start

        def counted() -> Iterator[tuple[int | None, np.ndarray | ImageError]]:
            for index, pixels in islice(self._frames, None if stop is None else stop - start):
                self.at += 1
                yield index, pixels

        yield from _readable(self.source, counted(), tally, first=start == 0)


def _readable(
    source: Source,
    frames: Iterator[tuple[int | None, np.ndarray | ImageError]],
    tally: Tally,
    first: bool = True,
) -> Iterator[Frame]:
    """Those of the frames that can be read; `first` if the source begins with them."""
    try:
        for index, pixels in frames:
            if isinstance(pixels, ImageError):
                tally.skip("unreadable", frame_name(source, index), pixels)
            else:
                yield Frame(source, index, pixels)
    except ImageError as error:
        if first:
            tally.skip("unreadable", frame_name(source, None), error)
    except UserError as error:
        tally.fail(str(source.file), error)


def _frames(
    source: Source, stride: int, grey_range: Range | None, start: int = 0
) -> Iterator[tuple[int | None, np.ndarray | ImageError]]:
    """Number and pixels of each frame from `start` on, or what is wrong with it."""
    if source.kind == "picture":
        yield None, read_rgb(source.file, grey_range)
    elif source.kind == "video":
        yield from islice(enumerate(read_video(source.file)), start, None, stride)
    else:
        frames = read_frames(source.file, source.topic, stride, grey_range, start)
        for number, (_, pixels) in enumerate(frames):
            yield start + number * stride, pixels


def _sources_at(path: Path, topic: str | None, results: Path | None) -> Iterator[Source]:
    if not path.exists():
        raise UserError(f"'{path}' does not exist: give pictures, folders, videos or recordings")
    if is_recording(path):
        yield _recording(path, topic)
    elif path.is_file():
        video = is_video(path) or not (is_picture(path) or is_image(path))
        yield Source(path, "video" if video else "picture")
    else:
        any_found = False
        for file in _files(without_labels(path)):
            if results is not None and _is_result(file, results, path):
                continue
            source = _in_folder(file, topic)
            if source is not None:
                any_found = True
                yield source
        if not any_found:
            raise UserError(f"no pictures in '{path}': it holds no images, videos or recordings")


def _files(folder: Path) -> list[Path]:
    """The files below a folder; for those of a rosbag2 recording, its directory."""
    files = files_below(folder)
    bags = {parent for parent in {file.parent for file in files} if is_recording(parent)}
    return sorted({*(f for f in files if not bags & {*f.parents}), *bags})


def _in_folder(file: Path, topic: str | None) -> Source | None:
    if is_image(file):
        return Source(file, "picture")
    if is_recording(file):
        return _recording(file, topic)
    return Source(file, "video") if is_video(file) else None


def _recording(path: Path, topic: str | None) -> Source:
    with ExitStack() as stack:
        try:
            reader = stack.enter_context(BagReader(path))
        except UserError:  # told when its turn comes
            return Source(path, "recording", topic)
        return Source(path, "recording", choose_topic(reader, topic))


def _is_result(file: Path, results: Path, searched: Path) -> bool:
    """Whether a file lies in the directory of results, or beside its heatmap as one of them."""
    inside = results.resolve()
    if inside not in file.resolve().parents:
        return False
    name, _, kind = file.stem.rpartition("_")
    made = kind in ("mask", "segments", "edited", "overlay", "diffusion")
    return inside != searched.resolve() or (made and file.with_name(f"{name}_heatmap.npy").exists())
