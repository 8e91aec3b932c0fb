"""Nominal frames to train or calibrate on: of folders, files, videos, recordings, data sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from anomaly_detector_ros.cli.common import progress_bar
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.runtime.progress import Progress, silent
from anomaly_detector_ros.sources.frames import Frame, Source, find_sources, read_sources

if TYPE_CHECKING:
    from anomaly_detector_ros.sources.tally import Tally

MIN_SHARPNESS, MIN_CHANGE = 30.0, 2.0

StrideOption = Annotated[
    int,
    typer.Option("--stride", min=1, help="Look at every so many frames of recordings and videos."),
]
MinSharpnessOption = Annotated[
    float,
    typer.Option(
        "--min-sharpness",
        min=0,
        help="Leave blurred frames of recordings and videos out: variance of the Laplacian, 320 "
        "columns.",
    ),
]
MinChangeOption = Annotated[
    float,
    typer.Option(
        "--min-change",
        min=0,
        help="Leave frames out that differ less (grey, 0 to 255) from the last kept.",
    ),
]


@dataclass(frozen=True)
class DataOptions:
    """How to read what `--data` and its like name.

    Attributes:
        dataset: layout of a labelled data set (see `evaluation.datasets`), of which the nominal
            images are taken; None for all else.
        topic: camera topic of recordings; None for the only one.
        stride: every so many frames of recordings and videos are looked at.
        min_sharpness: see `training.dataset.FrameFilter`, like ``min_change``.
        min_change: frames that differ less from the last one kept are left out.
        grey_range: see `images.to_8_bit`.
    """

    dataset: str | None = None
    topic: str | None = None
    stride: int = 1
    min_sharpness: float = MIN_SHARPNESS
    min_change: float = MIN_CHANGE
    grey_range: tuple[float, float] | None = None


def find_nominal(given: Iterable[Path], split: str | None, options: DataOptions) -> list[Source]:
    """The sources of nominal frames, each once.

    Args:
        given: what `sources.find_sources` takes, or with a data set its roots.
        split: part of the data set.
        options: how to read them.

    Raises:
        UserError: a path is missing or holds no picture, or no nominal one.
    """
    if options.dataset is None:
        if split is not None:
            raise UserError(f"split '{split}' of what: name the layout with --dataset")
        return find_sources(given, options.topic)
    from anomaly_detector_ros.evaluation.cache import Cache
    from anomaly_detector_ros.evaluation.datasets.base import open_nominal
    from anomaly_detector_ros.weights.registry import cache_directory

    cache = Cache(cache_directory() / "evaluation")
    files: dict[Path, Path] = {}
    for root in given:
        with progress_bar(f"labels of {options.dataset}") as advance:
            found = open_nominal(options.dataset, root, split, advance, cache).image_files()
        for file in found:
            files.setdefault(file.resolve(), file)
    return [Source(file, "picture") for file in files.values()]


def picture_files(given: Iterable[Path]) -> list[Path]:
    """The picture files among what is given.

    Raises:
        UserError: a path is missing, holds none, or is a video or recording.
    """
    sources = find_sources(given)
    for source in sources:
        if source.kind != "picture":
            raise UserError(f"'{source.file}' is a {source.kind}: give pictures")
    return [source.file for source in sources]


def read_nominal(sources: Iterable[Source], options: DataOptions, tally: Tally) -> Iterator[Frame]:
    """The frames to learn from: of recordings and videos those that are sharp and new.

    Args:
        sources: in the order in which they are read.
        options: how to read them.
        tally: takes what is left out.
    """
    from anomaly_detector_ros.training.dataset import FrameFilter

    for source in sources:
        good = FrameFilter(options.min_sharpness, options.min_change)
        frames = read_sources([source], tally, stride=options.stride, grey_range=options.grey_range)
        for frame in frames:
            blurred = good.blurred
            if source.kind == "picture" or good.keeps(frame.pixels):
                yield frame
            else:
                reason = "blurred" if good.blurred > blurred else "like the last"
                tally.skip(reason, frame.name)


def keep_files(
    frames: Iterable[Frame], folder: Path, options: DataOptions, progress: Progress = silent
) -> list[Path]:
    """Picture files of frames: their own, or in a folder those that have none.

    Args:
        frames: to keep.
        folder: takes lossless copies of frames of recordings and videos, and of pictures whose grey
            values were brought into a range.
        options: the frames were read with.
        progress: called with the frames so far.
    """
    import cv2

    files: list[Path] = []
    for frame in frames:
        progress(len(files) + 1)
        if frame.index is None and options.grey_range is None:
            files.append(frame.source.file)
            continue
        # The name is for messages.
        number = "" if frame.index is None else f"_{frame.index:06d}"
        name = f"{frame.source.file.stem[:60]}{number}"
        file = folder / f"{len(files)}" / f"{name}.png"
        file.parent.mkdir()
        pixels = np.ascontiguousarray(frame.pixels[..., ::-1])
        if not cv2.imwrite(str(file), pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1]):
            raise UserError(f"no room for frames in '{folder}': make some or set TMPDIR")
        files.append(file)
    return files


def shared_sources(ours: Iterable[Source], theirs: Iterable[Source]) -> int:
    """How many files and recordings both hold."""
    return len({s.file.resolve() for s in ours} & {s.file.resolve() for s in theirs})
