"""`anomaly-detector bag`: recordings to new ones with the detector's outputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
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
    ShareOption,
    ThresholdOption,
    console,
    is_launched,
    load_detector,
    parse_grey_range,
    progress_bar,
    rank,
    tell,
)
from anomaly_detector_ros.cli.page import save_bag_page
from anomaly_detector_ros.cli.results import unique_names
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.pages.page import FILE
from anomaly_detector_ros.profiles import DEFAULT_PROFILE
from anomaly_detector_ros.runtime.progress import Progress, silent
from anomaly_detector_ros.sources.frames import Source
from anomaly_detector_ros.sources.tally import Tally

if TYPE_CHECKING:
    from anomaly_detector_ros.bags.passes import BagReport
    from anomaly_detector_ros.detector import Detector


def bag(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="IN...",
            help="Recordings: rosbag2 directories, MCAP, SQLite or ROS 1 files; folders of them.",
        ),
    ],
    output: Annotated[
        Path, typer.Option(help="Bag directory to make; of several, the folder for theirs.")
    ],
    topic: Annotated[
        list[str] | None,
        typer.Option(
            help="Camera topic, raw or compressed; once for each camera. Default: the bag's only "
            "image topic."
        ),
    ] = None,
    outputs: Annotated[
        str, typer.Option(help="What to write, with commas: heatmap,mask,... or all.")
    ] = "all",
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the frames that an interrupted run finished."),
    ] = False,
    share: ShareOption = False,
    grey_range: GreyRangeOption = (0.0, 0.0),
    on_error: OnErrorOption = OnError.SKIP,
    profile: ProfileOption = DEFAULT_PROFILE,
    device: DeviceOption = "auto",
    threshold: ThresholdOption = None,
    offline: OfflineOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a new bag: the input's topics and the detector's outputs for every frame.

    Needs no ROS graph. Outputs are named as the node names them, /anomaly_detector/CAMERA/heatmap
    and so on, and carry the stamp and frame id of their frame. What an interrupted run finished
    stays in OUTPUT.partial; --resume goes on from it, without it the run starts anew.

    OUTPUT/index.html is a page to look at the frames in a browser: numbers of all of them, pictures
    of up to 400.

    Several recordings, or a folder of them, give OUTPUT/NAME each, with results.jsonl and
    summary.json. Any number of processes that run the same command share them, here and on other
    machines that see OUTPUT; whenever it is run again it goes on from what is finished. With
    --share they share the frames of a single one, too.

    Example: anomaly-detector bag drive_01 --output drive_01_anomalies --topic /camera/image_raw

    Example: torchrun --nproc-per-node 4 -m anomaly_detector_ros bag drives/ --output anomalies
    """
    from anomaly_detector_ros.bags.outputs import OUTPUTS
    from anomaly_detector_ros.sources.frames import find_recordings

    options = _Options(
        topics=topic or [],
        outputs=list(OUTPUTS)
        if outputs == "all"
        else [name.strip() for name in outputs.split(",") if name.strip()],
        skip_errors=on_error is OnError.SKIP,
        grey_range=parse_grey_range(grey_range),
        load=partial(load_detector, profile, device, threshold=threshold, offline=offline),
        as_json=as_json,
    )
    recordings = find_recordings(inputs, results=output)
    single = recordings == inputs[:1]
    if share or is_launched() or not single:
        _many(recordings, output, options, single=single)
    else:
        _one(recordings[0], output, options, resume)


@dataclass(frozen=True)
class _Options:
    """What both ways have in common; see `bag`."""

    topics: list[str]
    outputs: list[str]
    skip_errors: bool
    grey_range: tuple[float, float] | None
    load: Callable[[], Detector]
    as_json: bool

    def save_page(
        self, detector: Detector, bag: Path, report: BagReport, progress: Progress | None = None
    ) -> Path:
        """Write a bag's page."""
        facts = [f"profile {detector.profile.name}", f"threshold {detector.threshold:g}"]
        return save_bag_page(
            bag,
            report,
            facts,
            calibrated=detector.calibrated,
            grey_range=self.grey_range,
            progress=progress,
        )


def _one(source: Path, output: Path, options: _Options, resume: bool) -> None:
    from anomaly_detector_ros.bags.processing import choose_topics, partial_path, process_bag
    from anomaly_detector_ros.sources.recordings import BagReader

    if output.exists():
        raise UserError(f"'{output}' exists already: remove it or give another output")
    with BagReader(source) as reader:  # a wrong topic is told before models load
        topics = choose_topics(reader, options.topics)
    detector = options.load()
    with (
        _hint(partial_path(output), "give --resume"),
        progress_bar(f"frames of {', '.join(topics)}") as advance,
    ):
        report = process_bag(
            source,
            output,
            detector,
            topics=topics,
            outputs=options.outputs,
            skip_errors=options.skip_errors,
            resume=resume,
            grey_range=options.grey_range,
            progress=advance,
        )
    page = options.save_page(detector, output, report)
    line = report.to_dict(source, output)
    if options.as_json:
        typer.echo(json.dumps(line))
    _tell(line, options.as_json)
    tell(report.tally)
    if report.barren:
        raise UserError(report.barren)
    if not options.as_json:
        typer.echo(f"Look at them: {page}")


def _many(sources: list[Path], output: Path, options: _Options, *, single: bool) -> None:
    """All recordings, or the only one, with whatever processes do the same."""
    from anomaly_detector_ros.bags.many import RESULTS, Recording, SharedBags

    if rank():  # of a launcher's processes the first speaks for all
        console.quiet = True
    names = unique_names([Source(file, "recording") for file in sources])
    outputs = [output if single else output / name for name in names.values()]
    recordings = [
        Recording.find(source, made, options.topics)
        for source, made in zip(sources, outputs, strict=True)
    ]
    shared = SharedBags(
        recordings,
        output,
        outputs=options.outputs,
        skip_errors=options.skip_errors,
        grey_range=options.grey_range,
    )
    detector = options.load()
    save_page = partial(options.save_page, detector, progress=silent)
    with _hint(shared.work, "run the command again"), progress_bar("frames") as advance:
        summary = shared.run(detector, advance, save_page)
    tally = Tally()
    tally.add(summary["tally"])
    if not rank():
        lines = [json.loads(line) for line in (output / RESULTS).read_text().splitlines()]
        if options.as_json:
            typer.echo(json.dumps(lines[0] if single and lines else lines))
        for line in lines:
            _tell(line, options.as_json)
    tell(tally)
    tally.check()
    if not (rank() or options.as_json):
        typer.echo(f"Look at them: {(output if single else output / 'NAME') / FILE}")


@contextmanager
def _hint(kept: Path, advice: str) -> Iterator[None]:
    """Says how to go on with what a run left."""
    try:
        yield
    except BaseException:  # Ctrl-C too
        if kept.exists():
            text = f"finished frames are kept in '{kept}': {advice} to go on"
            console.print(text, markup=False, soft_wrap=True)
        raise


def _tell(line: dict[str, Any], as_json: bool) -> None:
    """Print what was done with a recording."""
    for camera in line["cameras"]:
        if not as_json:
            frames, topic = camera["frames"], camera["topic"]
            typer.echo(f"{line['output']}: {frames} frames of {topic} with outputs")
    if line["resumed"]:
        console.print(f"{line['resumed']} frames were finished by an earlier run", markup=False)
    if line["replaced"]:
        console.print(f"replaced the input's {', '.join(line['replaced'])}", markup=False)
