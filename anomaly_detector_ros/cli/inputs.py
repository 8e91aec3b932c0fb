"""The pictures and videos that a command is given, and a name for the results of each."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from anomaly_detector_ros.cli.common import progress_bar
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.imaging.images import IMAGE_SUFFIXES, ImageError, find_images, read_rgb

if TYPE_CHECKING:
    import numpy as np

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


class UnreadableError(UserError):
    """An input that is there but holds no picture that can be read."""


@dataclass(frozen=True)
class Source:
    """One picture file or video.

    Attributes:
        file: where it is.
        name: begins the names of its results; that of a video's frame goes on with its number.
        frames: how many pictures it holds, as far as its header tells.
        video: whether it is a video.
    """

    file: Path
    name: str
    frames: int = 1
    video: bool = False

    def names_to_expect(self) -> list[str]:
        """Names of results, to look for earlier ones; a video's first frame stands for all."""
        return [frame_name(self.name, 0)] if self.video else [self.name]


def nominal_files(
    given: Iterable[Path], dataset: str | None = None, split: str | None = None
) -> list[Path]:
    """The picture files of folders and files, or the nominal ones of data sets, each once.

    Args:
        given: pictures, folders, searched recursively, or with `dataset` the roots of data sets.
        dataset: their layout.
        split: part of the data set.

    Raises:
        UserError: a path is missing or holds no picture, or no nominal one.
    """
    if dataset is None and split is not None:
        raise UserError(f"split '{split}' of what: name the layout with --dataset")
    files: dict[Path, Path] = {}
    for path in given:
        if dataset is not None:
            from anomaly_detector_ros.evaluation.cache import Cache
            from anomaly_detector_ros.evaluation.datasets.base import open_nominal
            from anomaly_detector_ros.weights.registry import cache_directory

            cache = Cache(cache_directory() / "evaluation")
            with progress_bar(f"labels of {dataset}") as advance:
                found = open_nominal(dataset, path, split, advance, cache).image_files()
        elif path.is_file():
            found = [path]
        else:
            # A labelled data set's labels are picture files too.
            found = find_images(path / "images" if (path / "images").is_dir() else path)
        for file in found:
            files.setdefault(file.resolve(), file)
    return list(files.values())


def frame_name(name: str, index: int) -> str:
    """Name of a video's frame, counted from 0."""
    return f"{name}_{index:06d}"


def find_sources(inputs: list[Path], output: Path) -> list[Source]:
    """Every picture and video among the inputs, each once; folders are searched recursively.

    What lies in the output directory is left out of folders, so that results are no inputs.

    Raises:
        UserError: an input is missing, or a folder without pictures.
    """
    files: dict[Path, Path] = {}
    for given in inputs:
        for file in _files(given, output):
            files.setdefault(file.resolve(), file)
    names = unique_names(list(files.values()))
    sources = []
    for file, name in names.items():
        video = file.suffix.lower() in VIDEO_SUFFIXES
        sources.append(Source(file, name, _count_frames(file) if video else 1, video))
    return sources


def unique_names(files: list[Path]) -> dict[Path, str]:
    """A name for each file: its stem, with extension, folder or number where stems are alike.

    >>> unique_names([Path("a/x.png"), Path("b/x.png"), Path("b/y.png"), Path("b/y.jpg")]).values()
    dict_values(['a_x', 'b_x', 'y_png', 'y_jpg'])
    """
    named: dict[Path, str] = {}
    spellings: tuple[Callable[[Path], str], ...] = (
        lambda f: f.stem,
        lambda f: f"{f.stem}_{f.suffix[1:].lower()}",
        lambda f: f"{f.parent.name}_{f.stem}",
        lambda f: f"{f.parent.name}_{f.stem}_{f.suffix[1:].lower()}",
    )
    # Frames of videos are numbered, so a picture may not be called like a frame.
    videos = {f.stem for f in files if f.suffix.lower() in VIDEO_SUFFIXES}
    for spelling in spellings:
        spelt = {file: spelling(file) for file in files if file not in named}
        counts = Counter(spelt.values()) + Counter(named.values())
        for file, name in spelt.items():
            stem, _, number = name.rpartition("_")
            if counts[name] == 1 and not (number.isdigit() and stem in videos):
                named[file] = name
    for file in files:
        if file not in named:
            numbered = (f"{spellings[1](file)}_n{number}" for number in itertools.count(1))
            named[file] = next(name for name in numbered if name not in named.values())
    return {file: named[file] for file in files}


def frames_of(source: Source) -> Iterator[tuple[str, int | None, np.ndarray]]:
    """Name, number (None for a picture) and pixels, uint8 RGB (H, W, 3), of each picture.

    Raises:
        UnreadableError: the file is corrupt, or a video ends early (after its last good frame).
    """
    if not source.video:
        try:
            image = read_rgb(source.file)
        except ImageError as error:
            raise UnreadableError(str(error)) from error
        yield source.name, None, image
        return
    import cv2

    capture = cv2.VideoCapture(str(source.file))
    index = 0
    try:
        while True:
            more, frame = capture.read()
            if not more:
                break
            yield frame_name(source.name, index), index, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            index += 1
    finally:
        capture.release()
    if index == 0:
        raise UnreadableError(f"cannot read '{source.file}': no frame of the video can be decoded")
    if source.frames > 1 and index < source.frames * 0.98:
        # Containers count approximately; a larger gap is a file that ends early.
        raise UnreadableError(
            f"video '{source.file}' ends early: {index} of {source.frames} frames could be decoded"
        )


def _files(given: Path, output: Path) -> list[Path]:
    if given.is_dir():
        suffixes = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
        inside = output.resolve()
        found = [
            file
            for file in sorted(given.rglob("*"))
            if file.suffix.lower() in suffixes
            and file.is_file()
            and not (inside in file.resolve().parents and inside != given.resolve())
            and not (inside in file.resolve().parents and _is_result(file))
        ]
        if not found:
            raise UserError(f"no pictures in '{given}': expected {', '.join(suffixes)} files")
        return found
    if not given.exists():
        raise UserError(f"'{given}' does not exist: give pictures, folders or videos")
    return [given]


def _is_result(file: Path) -> bool:
    """Whether a picture beside the results is one of them: its heatmap lies beside it."""
    name, _, kind = file.stem.rpartition("_")
    return kind in ("mask", "segments", "edited", "overlay") and (
        file.with_name(f"{name}_heatmap.npy").exists()
    )


def _count_frames(video: Path) -> int:
    import cv2

    capture = cv2.VideoCapture(str(video))
    try:
        return max(1, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))) if capture.isOpened() else 1
    finally:
        capture.release()
