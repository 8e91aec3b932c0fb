"""The images to train on: folders, labelled data sets, rosbags and videos."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from anomaly_detector_ros.cli.common import progress_bar
from anomaly_detector_ros.cli.inputs import VIDEO_SUFFIXES, Source, frames_of, nominal_files
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.imaging.images import ImageError

if TYPE_CHECKING:
    import numpy as np

    from anomaly_detector_ros.training.dataset import TrainingImages

BAG_SUFFIXES = (".mcap", ".db3")


@dataclass(frozen=True)
class DataOptions:
    """How to read what `--data` and `--validation` name.

    Attributes:
        dataset: layout of a labelled data set (see `evaluation.datasets`), of which the nominal
            images are taken; None for folders of images, rosbags and videos.
        topic: camera topic of rosbags; None for the only one.
        stride: every so many frames of rosbags and videos are looked at.
        min_sharpness: see `training.dataset.FrameFilter`, like ``min_change``.
        min_change: frames that differ less from the last one kept are left out.
    """

    dataset: str | None = None
    topic: str | None = None
    stride: int = 1
    min_sharpness: float = 30.0
    min_change: float = 2.0


@dataclass
class Pictures:
    """Where pictures come from, and what was left out.

    Attributes:
        files: picture files.
        recordings: rosbags and videos.
        skipped: frames of recordings left out, by reason.
    """

    files: list[Path]
    recordings: list[Path]
    skipped: dict[str, int] = field(default_factory=dict)

    def shared_with(self, other: Pictures) -> int:
        """How many files and recordings both hold."""
        ours, theirs = ({p.resolve() for p in (*of.files, *of.recordings)} for of in (self, other))
        return len(ours & theirs)


def find_pictures(given: list[Path], split: str | None, options: DataOptions) -> Pictures:
    """Looks for the pictures; frames of recordings are read later.

    Raises:
        UserError: a path is missing or holds no picture, or no nominal one.
    """
    taped = [p for p in given if options.dataset is None and _is_recording(p)]
    recordings = {path.resolve(): path for path in taped}
    rest = [path for path in given if path not in taped]
    return Pictures(nominal_files(rest, options.dataset, split), list(recordings.values()))


def read_pictures(
    what: str, pictures: Pictures, size: tuple[int, int], min_crop: float, options: DataOptions
) -> TrainingImages:
    """Reads all pictures into memory, those of recordings through the frame filter.

    Raises:
        UserError: see `TrainingImages`; a recording that cannot be read, or without a good frame.
    """
    from anomaly_detector_ros.training.dataset import TrainingImages

    recorded = bool(pictures.recordings)
    with progress_bar(what, None if recorded else len(pictures.files)) as advance:
        # Of a list the size is known, and with it whether there is enough memory.
        every = _with_frames(pictures, options) if recorded else pictures.files
        images = TrainingImages(every, size, min_crop, advance)
    if not len(images):
        raise UserError(
            f"no frame of '{pictures.recordings[0]}' is good to train on "
            f"({describe_skipped(pictures)}): lower --min-sharpness or --min-change"
        )
    return images


def describe_skipped(pictures: Pictures) -> str:
    """What was left out of recordings and why, as text."""
    return ", ".join(f"{count} {reason}" for reason, count in pictures.skipped.items() if count)


def _with_frames(pictures: Pictures, options: DataOptions) -> Iterator[Path | np.ndarray]:
    """The files, then the good frames of each recording; counts the others."""
    from anomaly_detector_ros.training.dataset import FrameFilter

    yield from pictures.files
    skipped = dict.fromkeys(("unreadable", "blurred", "like the last"), 0)
    pictures.skipped = skipped
    for recording in pictures.recordings:
        good = FrameFilter(options.min_sharpness, options.min_change)
        for frame in _frames(recording, options):
            if frame is None:
                skipped["unreadable"] += 1
            elif good.keeps(frame):
                yield frame
        skipped["blurred"] += good.blurred
        skipped["like the last"] += good.repeated


def _frames(recording: Path, options: DataOptions) -> Iterator[np.ndarray | None]:
    """Every so many frames of a rosbag or video; None for one that is no picture."""
    if recording.suffix.lower() in VIDEO_SUFFIXES:
        frames = frames_of(Source(recording, recording.stem, video=True))
        yield from (frame for _, _, frame in islice(frames, 0, None, options.stride))
        return
    from anomaly_detector_ros.sources.recordings import read_frames

    for _, frame in read_frames(recording, options.topic, options.stride):
        yield None if isinstance(frame, ImageError) else frame


def _is_recording(path: Path) -> bool:
    if path.is_dir():
        return (path / "metadata.yaml").is_file()
    return path.suffix.lower() in (*BAG_SUFFIXES, *VIDEO_SUFFIXES)
