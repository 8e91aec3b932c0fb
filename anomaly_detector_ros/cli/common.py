"""What the commands share: options, output streams, progress, loading a detector, writing files."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import progress as bars
from rich.console import Console

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.runtime.files import replace_file
from anomaly_detector_ros.runtime.progress import PlainProgress, Progress

if TYPE_CHECKING:
    from anomaly_detector_ros.detector import Detector
    from anomaly_detector_ros.sources.tally import Tally

console = Console(stderr=True, highlight=False)
"""For people; standard output holds results alone."""


class OnError(str, Enum):
    """What to do with a frame that cannot be read or that the models fail on."""

    SKIP = "skip"
    STOP = "stop"


ProfileOption = Annotated[
    str, typer.Option("--profile", help="Models and settings: a profile's name or a YAML file.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
OfflineOption = Annotated[
    bool, typer.Option("--offline", help="Never touch the network: missing models are an error.")
]
ThresholdOption = Annotated[
    float | None,
    typer.Option(
        "--threshold", min=0.0, max=1.0, help="Heatmap value from which a pixel is an anomaly."
    ),
]
OnErrorOption = Annotated[
    OnError,
    typer.Option(
        "--on-error",
        help="A frame that cannot be read, or that the models fail on: skip and count it, or stop.",
    ),
]
TopicOption = Annotated[
    str | None, typer.Option("--topic", help="Camera topic of recordings; default: their only one.")
]
GreyRangeOption = Annotated[
    tuple[float, float],
    typer.Option(
        "--grey-range",
        metavar="LOW HIGH",
        help="Values that become black and white in pictures of more than 8 bits; 0 0: the "
        "percentiles 0.5 and 99.5 of each.",
    ),
]
ShareOption = Annotated[
    bool,
    typer.Option(
        "--share",
        help="Share the work with other processes that run the same command, and go on from what "
        "was finished before; so do accelerate launch and torchrun.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]


def rank() -> int:
    """Number of this process among those of a launcher; 0 without one."""
    return int(os.environ.get("RANK", "0"))


def is_launched() -> bool:
    """Whether a launcher has started this process together with others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def own_device(name: str) -> str:
    """The device to run on; with the name auto each process of a launcher takes its own GPU."""
    import torch

    local = os.environ.get("LOCAL_RANK")
    if name != "auto" or local is None or not torch.cuda.is_available():
        return name
    return f"cuda:{int(local) % torch.cuda.device_count()}"


def load_detector(
    profile: str, device: str, *, threshold: float | None = None, offline: bool = False
) -> Detector:
    """The profile's detector: a progress bar while models are fetched, a spinner while they load.

    Raises:
        UserError: unknown profile or device, missing weights.
    """
    from anomaly_detector_ros.profiles import load_profile

    fetch_missing(load_profile(profile).model_names(), offline)
    with console.status(f"loading the models of profile '{profile}'"):
        from anomaly_detector_ros.detector import Detector

        detector = Detector.from_profile(profile, device=own_device(device), offline=offline)
    if threshold is not None:
        detector.threshold = threshold
    return detector


def fetch_missing(names: Iterable[str], offline: bool) -> None:
    """Fetch those of the models that are not here, with a progress bar if there are any.

    Raises:
        UserError: a model cannot be had.
    """
    from anomaly_detector_ros.weights.registry import Registry

    registry = Registry.default()
    with ExitStack() as stack:
        bar = None
        for name in names:
            if not registry.has(name):
                bar = bar or stack.enter_context(download_bar())
                registry.fetch(name, offline=offline, progress=bar)


@contextmanager
def download_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar per file; gives a function that takes its name, bytes done and in all."""
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.DownloadColumn(),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    )
    tasks: dict[str, bars.TaskID] = {}
    with bars.Progress(*columns, console=console) as bar:

        def advance(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total or None)
            bar.update(tasks[name], completed=done, total=total or None)

        yield advance


@contextmanager
def progress_bar(what: str, total: int | None = None) -> Iterator[Progress]:
    """A progress bar on standard error, or plain lines where that is no terminal."""
    if not console.is_terminal:
        with PlainProgress(what, total, lambda line: console.print(line, markup=False)) as plain:
            yield plain
        return
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn() if total != 0 else bars.SpinnerColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=total)
        known = total

        def advance(done: int, total: int | None = None, doing: str | None = None) -> None:
            of = known if total is None else total
            bar.update(task, completed=done, total=of, description=doing or what)

        yield advance


def parse_grey_range(given: tuple[float, float]) -> tuple[float, float] | None:
    """The range that was given; None for percentiles.

    Raises:
        UserError: it is neither a range nor 0 0.
    """
    if given == (0.0, 0.0):
        return None
    if not given[0] < given[1] < math.inf or given[0] == -math.inf:
        raise UserError(
            f"--grey-range {given[0]:g} {given[1]:g} is no range: give the lower number first"
        )
    return given


def tell(tally: Tally) -> None:
    """Say what became of the frames; the end of every command that reads any."""
    first, *rest = tally.lines()
    console.print(first, markup=False, soft_wrap=True)
    for line in rest:
        console.print(line, style="yellow", markup=False, soft_wrap=True)


def parse_size(text: str, option: str) -> tuple[int, int]:
    """'96x176', given by an option, as (height, width); raises UserError."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise UserError(f"{option} '{text}' is not HEIGHTxWIDTH: give for example 96x176")
    return int(height), int(width)


def write_atomically(file: Path, data: bytes) -> None:
    """Write a file that appears under its name only when it is whole.

    Raises:
        UserError: it cannot be written.
    """
    try:
        replace_file(file, lambda partial: partial.write_bytes(data))
    except OSError as error:
        raise cannot_write(file, error) from error


def append_line(file: Path, line: str) -> None:
    """Append one line to a file; all of it, or nothing.

    Raises:
        UserError: it cannot be written.
    """
    data = (line + "\n").encode()
    try:
        with file.open("ab", buffering=0) as out:
            size = out.tell()
            try:
                if out.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                out.truncate(size)
                raise
    except OSError as error:
        raise cannot_write(file, error) from error


def make_directory(directory: Path) -> None:
    """Make the output directory; UserError where that is impossible."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make '{directory}' ({error.strerror}): give another output directory"
        ) from error


def cannot_write(file: Path, error: OSError) -> UserError:
    """The user's error for a file that cannot be written."""
    return UserError(
        f"cannot write '{file}' ({error.strerror}): make room or give another output directory"
    )
