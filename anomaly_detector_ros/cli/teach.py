"""`anomaly-detector teach`: nominal frames join what a detector knows, without training."""

from __future__ import annotations

import json
import tempfile
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomaly_detector_ros.cli.common import (
    DeviceOption,
    GreyRangeOption,
    JsonOption,
    OfflineOption,
    OnError,
    OnErrorOption,
    ProfileOption,
    TopicOption,
    console,
    load_detector,
    make_directory,
    parse_grey_range,
    progress_bar,
    tell,
)
from anomaly_detector_ros.cli.nominal import DataOptions
from anomaly_detector_ros.profiles import DEFAULT_PROFILE
from anomaly_detector_ros.sources.frames import Source, find_sources, read_sources
from anomaly_detector_ros.sources.tally import Tally

if TYPE_CHECKING:
    from anomaly_detector_ros.detector import Detector
    from anomaly_detector_ros.lessons.journal import Lesson, Lessons
    from anomaly_detector_ros.lessons.teaching import Look

_ASKED_BY = "anomaly-detector teach"


class Accept(str, Enum):
    """Which frames are taken."""

    PLAIN = "plain"
    ALL = "all"


def teach(
    data: Annotated[
        list[Path],
        typer.Option(
            help="Nominal frames: files, folders, videos and recordings of your terrain; "
            "repeatable."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(help="File of lessons (.safetensors); one that exists gets another lesson."),
    ],
    frames: Annotated[
        int, typer.Option(min=1, help="Most frames that are taken, spread over all of --data.")
    ] = 60,
    accept: Annotated[
        Accept,
        typer.Option(
            help="plain: leave frames out on which an anomaly seems to stand, as they score higher "
            "than the others; all: leave none out."
        ),
    ] = Accept.PLAIN,
    train: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Train the denoiser on the same frames besides, for so long (60min, 2h), and "
            "measure what each brought on the last fifth of them, which is held out.",
        ),
    ] = None,
    topic: TopicOption = None,
    grey_range: GreyRangeOption = (0.0, 0.0),
    on_error: OnErrorOption = OnError.SKIP,
    profile: ProfileOption = DEFAULT_PROFILE,
    device: DeviceOption = "auto",
    offline: OfflineOption = False,
    as_json: JsonOption = False,
) -> None:
    """Teach a detector what is nominal here: a minute's drive, no labels, no training.

    The frames' features join the memory where they are new to it. Heatmap values keep their
    meaning: they are fitted again to the scores of these frames, each scored by a memory of the
    others. The profile's own files stay as they are, and lessons can be undone.

    A profile uses the file by `lessons: {file: FILE}`; the node by its parameter lessons.

    Example: anomaly-detector teach --data drive.mcap --output mine.safetensors
    """
    tally, options = Tally(stop=on_error is OnError.STOP), parse_grey_range(grey_range)
    sources = find_sources(data, topic)
    make_directory(output.parent)
    detector = load_detector(profile, device, offline=offline)
    _begin(detector, output)
    if train is None:
        looks = _look(detector, *_spread(sources, frames), options, tally)
        tell(tally)
        tally.check()
        summary = _teach(detector, looks, output, accept)
        summary["frames_read"] = tally.to_dict()
    else:
        summary = _teach_and_train(
            detector, sources, DataOptions(grey_range=options), tally, output, frames, accept, train
        )
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    elif train is None:
        _print(summary)


def _teach(detector: Detector, looks: list[Look], output: Path, accept: Accept) -> dict[str, Any]:
    """Teaches the detector, on top of the lessons in force, and writes the file."""
    from anomaly_detector_ros.lessons.teaching import Teaching

    lessons = detector.lessons
    assert lessons is not None  # see _begin
    teaching = Teaching(
        looks,
        detector.distance,
        lessons.taught(),
        detector.rescore,
        most=lessons.room,
        accept_all=accept is Accept.ALL,
    )
    with progress_bar("learning", teaching.count) as advance:
        for done, _ in enumerate(teaching.work(), 1):
            advance(done)
    lesson = teaching.lesson(camera="", asked_by=_ASKED_BY)
    lessons = lessons.added(lesson)
    lessons.save(output)
    detector.teach(lessons)
    return _summary(lesson, lessons, looks, output)


def _teach_and_train(
    detector: Detector,
    sources: list[Source],
    options: DataOptions,
    tally: Tally,
    output: Path,
    frames: int,
    accept: Accept,
    duration: str,
) -> dict[str, Any]:
    """Teaches, trains, teaches the detector with the new denoiser, and measures each."""
    from anomaly_detector_ros.building import Parts
    from anomaly_detector_ros.cli.teach_train import (
        Drive,
        measured,
        parse_duration,
        print_measured,
        trained_profile,
    )
    from anomaly_detector_ros.detector import Detector

    seconds = parse_duration(duration)
    with tempfile.TemporaryDirectory(prefix="anomaly-detector-frames-") as folder:
        drive = Drive(sources, options, tally, Path(folder))
        known = [Source(file, "picture") for file in drive.known]
        chosen = known[:: max(1, -(-len(known) // frames))]
        rates = {"as it was": measured(detector, drive)}
        looks = _look(detector, chosen, 1, None, Tally(stop=tally.stop))  # they were counted
        summary = _teach(detector, looks, output, accept)
        rates["taught"] = measured(detector, drive)
        parts = Parts(detector.device, offline=True)
        profile, file = trained_profile(
            detector.profile, parts, drive, output, seconds, str(detector.device)
        )
        detector = Detector.from_parts(profile, Parts(detector.device, offline=True))
        own = output.with_name(f"{output.stem}_trained.safetensors")
        _begin(detector, own)
        looks = _look(detector, chosen, 1, None, Tally(stop=tally.stop))
        summary["trained"] = _teach(detector, looks, own, accept)
        rates["trained and taught"] = measured(detector, drive)
    print_measured(rates, len(drive.held_out))
    console.print(
        f"saved: {output}; use either --profile {file}, or the shipped models with {output}",
        markup=False,
    )
    summary |= {"held_out": rates, "held_out_frames": len(drive.held_out), "profile": str(file)}
    summary["frames_read"] = tally.to_dict()
    return summary


def _spread(sources: list[Source], frames: int) -> tuple[list[Source], int]:
    """The sources that are looked at, and every how many frames of each."""
    step = max(1, -(-sum(source.expected() for source in sources) // frames))
    pictures = [source for source in sources if source.kind == "picture"][::step]
    return [s for s in sources if s.kind != "picture" or s in pictures], step


def _begin(detector: Detector, output: Path) -> None:
    """The lessons that the file holds are in force, or none yet; what cannot be is refused."""
    from anomaly_detector_ros.building import Parts
    from anomaly_detector_ros.lessons.journal import remove_partial

    remove_partial(output)
    parts = Parts(detector.device, offline=True)
    detector.teach(parts.lessons(detector.profile, output if output.exists() else None))


def _look(
    detector: Detector,
    sources: list[Source],
    stride: int,
    grey_range: tuple[float, float] | None,
    tally: Tally,
) -> list[Look]:
    from anomaly_detector_ros.lessons.teaching import Look

    looks = []
    with progress_bar("looking") as advance:
        for frame in read_sources(sources, tally, stride=stride, grey_range=grey_range):
            found = tally.tried(frame.name, detector.detect, frame.pixels)
            if found is not None:
                looks.append(Look.of(frame.name, frame.pixels, found, detector.threshold))
                tally.processed += 1
            advance(len(looks))
    return looks


def _summary(lesson: Lesson, lessons: Lessons, looks: list[Look], output: Path) -> dict[str, Any]:
    return {
        "lesson": lesson.to_dict(),
        "alarmed_before": sum(look.share for look in looks) / len(looks),
        "refitted": lesson.scores is not None,
        "lessons": len(lessons.entries),
        "vectors": lessons.vectors,
        "output": str(output),
    }


def _print(summary: dict[str, Any]) -> None:
    lesson = summary["lesson"]
    typer.echo(
        f"taught on {lesson['frames']} frames, {summary['alarmed_before']:.1%} of whose pixels "
        f"raised an alarm: {lesson['vectors']} new feature vectors, {summary['vectors']} in "
        f"{summary['lessons']} lessons"
    )
    if lesson["left_out"]:
        console.print(
            f"{len(lesson['left_out'])} left out, an anomaly seems to stand there (--accept all "
            f"takes them): {', '.join(lesson['left_out'])}",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )
    if not summary["refitted"]:
        console.print(
            "warning: too few frames to fit what heatmap values mean: give at least 5",
            style="yellow",
        )
    typer.echo(f"saved: {summary['output']}")
