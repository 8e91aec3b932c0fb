"""`anomaly-detector bag`: a recording to a new one with the detector's outputs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomaly_detector_ros.cli.common import (
    DeviceOption,
    GreyRangeOption,
    JsonOption,
    OfflineOption,
    OnError,
    OnErrorOption,
    ProfileOption,
    ThresholdOption,
    console,
    load_detector,
    parse_grey_range,
    progress_bar,
    tell,
)
from anomaly_detector_ros.cli.page import save_bag_page
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.profiles import DEFAULT_PROFILE

if TYPE_CHECKING:
    from anomaly_detector_ros.bags.passes import BagReport


def bag(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN", help="Recording: rosbag2 directory, MCAP, SQLite or ROS 1 file."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Bag directory to make.")],
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

    Example: anomaly-detector bag drive_01 --output drive_01_anomalies --topic /camera/image_raw
    """
    from anomaly_detector_ros.bags.outputs import OUTPUTS
    from anomaly_detector_ros.bags.processing import choose_topics, process_bag
    from anomaly_detector_ros.sources.recordings import BagReader

    chosen_range = parse_grey_range(grey_range)
    named = [name.strip() for name in outputs.split(",") if name.strip()]
    names = list(OUTPUTS) if outputs == "all" else named
    if output.exists():
        raise UserError(f"'{output}' exists already: remove it or give another output")
    with BagReader(source) as reader:  # a wrong topic is told before models load
        topics = choose_topics(reader, topic or ())
    detector = load_detector(profile, device, threshold=threshold, offline=offline)
    with _hint(output), progress_bar(f"frames of {', '.join(topics)}") as advance:
        report = process_bag(
            source,
            output,
            detector,
            topics=topics,
            outputs=names,
            skip_errors=on_error is OnError.SKIP,
            resume=resume,
            grey_range=chosen_range,
            progress=advance,
        )
    facts = [f"profile {detector.profile.name}", f"threshold {detector.threshold:g}"]
    page = save_bag_page(
        output, report, facts, calibrated=detector.calibrated, grey_range=chosen_range
    )
    _tell(source, output, report, as_json)
    if not as_json:
        typer.echo(f"Look at them: {page}")


@contextmanager
def _hint(output: Path) -> Iterator[None]:
    """Says how to go on with what a run left."""
    from anomaly_detector_ros.bags.processing import partial_path

    try:
        yield
    except BaseException:  # Ctrl-C too
        if partial_path(output).exists():
            console.print(
                f"finished frames are kept in '{partial_path(output)}': give --resume to go on",
                markup=False, soft_wrap=True,
            )  # fmt: skip
        raise


def _tell(source: Path, output: Path, report: BagReport, as_json: bool) -> None:
    """Print what was done; raises UserError where no frame of a camera could be processed."""
    if as_json:
        counts = {"frames": report.frames, "skipped": report.skipped}
        paths = {"input": str(source), "output": str(output)}
        told = {**asdict(report), "tally": report.tally.to_dict()}
        for camera in told["cameras"]:
            del camera["judged"]
        typer.echo(json.dumps({**paths, **counts, **told}))
    for camera in report.cameras:
        if not as_json:
            typer.echo(f"{output}: {camera.frames} frames of {camera.topic} with outputs")
    if report.resumed:
        console.print(f"{report.resumed} frames were finished by an earlier run", markup=False)
    if report.replaced:
        console.print(f"replaced the input's {', '.join(report.replaced)}", markup=False)
    tell(report.tally)
    for camera in report.cameras:
        if camera.skipped and not camera.frames:
            raise UserError(f"no frame of '{camera.topic}' could be processed: check the recording")
