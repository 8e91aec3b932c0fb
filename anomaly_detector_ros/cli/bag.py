"""`anomaly-detector bag`: a recording to a new one with the detector's outputs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from anomaly_detector_ros.cli.common import (
    DeviceOption,
    JsonOption,
    OfflineOption,
    OnError,
    ProfileOption,
    ThresholdOption,
    console,
    load_detector,
    progress_bar,
)
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.profiles import DEFAULT_PROFILE


def bag(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="rosbag2 directory, or one .mcap or .db3 file.")
    ],
    output: Annotated[Path, typer.Option(help="Bag directory to make.")],
    topic: Annotated[
        str | None, typer.Option(help="Camera topic; default: the bag's only image topic.")
    ] = None,
    outputs: Annotated[
        str, typer.Option(help="What to write, with commas: heatmap,mask,... or all.")
    ] = "all",
    on_error: Annotated[
        OnError, typer.Option(help="With a frame that cannot be read: skip and count it, or stop.")
    ] = OnError.SKIP,
    profile: ProfileOption = DEFAULT_PROFILE,
    device: DeviceOption = "auto",
    threshold: ThresholdOption = None,
    offline: OfflineOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a new bag: the input's topics and the detector's outputs for every frame.

    Needs no ROS graph. Outputs are named as the node names them, /anomaly_detector/CAMERA/heatmap
    and so on, and carry the stamp and frame id of their frame.

    Example: anomaly-detector bag drive_01 --output drive_01_anomalies --topic /camera/image_raw
    """
    from anomaly_detector_ros.bag import OUTPUTS, process_bag
    from anomaly_detector_ros.bag_frames import BagReader, choose_topic

    named = [name.strip() for name in outputs.split(",") if name.strip()]
    names = list(OUTPUTS) if outputs == "all" else named
    if output.exists():
        raise UserError(f"'{output}' exists already: remove it or give another output")
    with BagReader(source) as reader:  # a wrong topic is told before models load
        topic = choose_topic(reader, source, topic)
    detector = load_detector(profile, device, threshold=threshold, offline=offline)
    with progress_bar(f"frames of {topic}") as advance:
        report = process_bag(
            source,
            output,
            detector,
            topic=topic,
            outputs=names,
            skip_errors=on_error is OnError.SKIP,
            progress=advance,
        )
    if as_json:
        typer.echo(json.dumps({"input": str(source), "output": str(output), **asdict(report)}))
    else:
        typer.echo(f"{output}: {report.frames} frames of {report.topic} with outputs")
    if report.skipped:
        console.print(
            f"skipped {report.skipped} frames; the first: {report.first_error}",
            style="yellow", markup=False, soft_wrap=True,
        )  # fmt: skip
    if report.replaced:
        console.print(f"replaced the input's {', '.join(report.replaced)}", markup=False)
    if report.skipped and not report.frames:
        raise UserError(f"no frame of '{report.topic}' could be processed: check the recording")
