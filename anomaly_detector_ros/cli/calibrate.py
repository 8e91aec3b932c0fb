"""`anomaly-detector calibrate`: nominal scores, so that a heatmap value means something."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from anomaly_detector_ros.cli.common import (
    DeviceOption,
    GreyRangeOption,
    JsonOption,
    OfflineOption,
    OnError,
    OnErrorOption,
    ProfileOption,
    TopicOption,
    cannot_write,
    console,
    fetch_missing,
    make_directory,
    parse_grey_range,
    progress_bar,
    tell,
)
from anomaly_detector_ros.cli.evaluate import layouts
from anomaly_detector_ros.cli.nominal import (
    DataOptions,
    MinChangeOption,
    MinSharpnessOption,
    StrideOption,
    find_nominal,
    keep_files,
    read_nominal,
)
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.profiles import DEFAULT_PROFILE, load_profile
from anomaly_detector_ros.sources.frames import Source
from anomaly_detector_ros.sources.tally import Tally

if TYPE_CHECKING:
    from anomaly_detector_ros.building import Parts
    from anomaly_detector_ros.calibration.calibration import Calibration
    from anomaly_detector_ros.fitting import FalsePositiveRate
    from anomaly_detector_ros.profiles import Profile
    from anomaly_detector_ros.runtime.progress import Progress

# With fewer, rare surfaces are missing and the measured rates say little.
_FEW = 20


def calibrate(
    data: Annotated[
        list[Path],
        typer.Option(
            help="Nominal images: files, folders, videos and recordings, or with --dataset the "
            "root of a labelled data set; repeatable."
        ),
    ],
    output: Annotated[Path, typer.Option(help="File to save the calibration in (.safetensors).")],
    memory: Annotated[
        list[Path] | None,
        typer.Option(
            help="Other nominal images, as --data, to fit the distance on: those that the denoiser "
            "was trained on; repeatable. Or a calibration beside --output, to share its distance."
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Layout of --data and --memory if labelled, whose nominal images are taken: "
            f"{layouts()}."
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Part of the data set.")] = None,
    topic: TopicOption = None,
    stride: StrideOption = 1,
    min_sharpness: MinSharpnessOption = 0.0,
    min_change: MinChangeOption = 0.0,
    grey_range: GreyRangeOption = (0.0, 0.0),
    on_error: OnErrorOption = OnError.SKIP,
    holdout: Annotated[
        float,
        typer.Option(min=0.0, max=0.95, help="Share of the images held out to measure on."),
    ] = 0.5,
    count: Annotated[
        int | None, typer.Option(min=1, help="Images to draw, held-out ones among them; all.")
    ] = None,
    camera: Annotated[
        str,
        typer.Option(
            help="Camera of the images: an existing --output keeps its distance and gets scores "
            "of this camera besides those it has."
        ),
    ] = "",
    seed: Annotated[int, typer.Option(min=0, help="Of the drawing and the intervals.")] = 0,
    profile: ProfileOption = DEFAULT_PROFILE,
    device: DeviceOption = "auto",
    offline: OfflineOption = False,
    as_json: JsonOption = False,
) -> None:
    """Learn on nominal images what heatmap values mean: 0.99 is higher than 99% of their pixels.

    Then measures, on images held out, how many pixels reach the thresholds; a threshold of 0.99
    asks for a false-positive rate of 0.01. Frames of one video are alike, so on other places the
    rates may differ by more than the intervals say. --holdout 0 fits on every image.

    Of videos and recordings every frame is taken, blurred ones and those of a robot at rest too, as
    it will see them, with the level of the last frames taken off, as in the node and in bag. Those
    of long ones fill the temporary folder: --stride takes fewer.

    A profile uses the file by `calibration: {file: FILE}`; the node by its parameter calibration.
    With --camera one file holds the scores of several cameras; each has the name it has in the
    node's parameter cameras. Cameras without scores of their own take the first.

    Example: anomaly-detector calibrate --data nominal_images/ --output calibration.safetensors
    """
    from anomaly_detector_ros.detector import Detector
    from anomaly_detector_ros.fitting import measure, split_files

    chosen = replace(load_profile(profile), calibration={})
    if memory and not chosen.parts.distance.fitted:
        raise UserError(
            f"--memory: the {chosen.distance['name']} distance of profile '{profile}' is not "
            "fitted: leave it out"
        )
    options = DataOptions(
        dataset, topic, stride, min_sharpness, min_change, parse_grey_range(grey_range)
    )
    tally = Tally(stop=on_error is OnError.STOP)
    shared = memory[0] if memory and memory[0].suffix == ".safetensors" else None
    if shared and shared.resolve().parent != output.resolve().parent:
        raise UserError(f"--memory {shared}: a calibration is shared in one folder: copy it there")
    given = [
        find_nominal(paths, split, options) if paths else []
        for paths in (data, None if shared else memory)
    ]
    # As such frames will be looked at. Pictures among them may be of anywhere.
    stream = all(source.kind != "picture" for source in given[0])
    make_directory(output.parent)
    parts = _load(chosen, device, offline)
    with tempfile.TemporaryDirectory(prefix="anomaly-detector-frames-") as folder:
        files, remembered = (
            _files(sources, options, tally, Path(folder) / name)
            for sources, name in zip(given, ("data", "memory"), strict=True)
        )
        try:
            fitted, held_out = split_files(files, holdout=holdout, count=count, seed=seed)
        except UserError:  # too few: perhaps because some were skipped
            if tally.count_skipped:
                tell(tally)
            raise
        _warn(len(fitted), len(held_out), holdout)
        with progress_bar("calibration") as advance:
            calibration = _fit(
                chosen,
                parts,
                fitted,
                remembered,
                shared,
                camera,
                output,
                stream,
                seed,
                tally,
                advance,
            )
            try:
                calibration.save(output)
            except OSError as error:
                raise cannot_write(output, error) from error
            rates: list[FalsePositiveRate] = []
            if held_out:
                calibrated = replace(chosen, calibration={"file": str(output)})
                detector = Detector.from_parts(calibrated, parts)
                # Parts remember what the file held before.
                detector.recalibrate(calibration, output)
                rates = measure(
                    detector,
                    held_out,
                    camera=camera,
                    stream=stream,
                    seed=seed,
                    tally=tally,
                    progress=advance,
                )
    summary = _summary(chosen, calibration, camera, rates, len(held_out), output)
    summary["frames"] = tally.to_dict()
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        _print(summary, rates)
    tell(tally)


def _files(sources: list[Source], options: DataOptions, tally: Tally, folder: Path) -> list[Path]:
    """Picture files of all frames that can be read; `folder` is made for those that have none."""
    if not sources:
        return []
    folder.mkdir()
    with progress_bar("reading") as advance:
        files = keep_files(read_nominal(sources, options, tally), folder, options, advance)
    if tally.failed or not files:
        tell(tally)
        tally.check()
    return files


def _fit(
    profile: Profile,
    parts: Parts,
    files: list[Path],
    memory: list[Path],
    shared: Path | None,
    camera: str,
    output: Path,
    stream: bool,
    seed: int,
    tally: Tally,
    progress: Progress,
) -> Calibration:
    """The whole calibration, or that of the file with the scores of one camera renewed."""
    from anomaly_detector_ros.detector import Detector
    from anomaly_detector_ros.fitting import fit_calibration, fit_camera

    if not (camera and output.exists()):
        calibration = fit_calibration(
            profile,
            parts,
            files,
            memory=memory,
            shared=shared,
            stream=stream,
            seed=seed,
            tally=tally,
            progress=progress,
        )
        own = {camera: calibration.nominal()}
    else:
        present = replace(profile, calibration={"file": str(output)})
        detector = Detector.from_parts(present, parts)
        assert detector.calibration is not None
        calibration = detector.calibration
        own = {camera: fit_camera(detector, files, stream=stream, tally=tally, progress=progress)}
    return replace(calibration, cameras={**calibration.cameras, **own})


def _warn(fitted: int, held_out: int, holdout: float) -> None:
    if fitted < _FEW:
        console.print(
            f"warning: {fitted} images to fit on: give at least {_FEW}, of all your terrain"
        )
    if holdout > 0 and held_out < _FEW:
        console.print(f"warning: {held_out} images held out: the measured rates say little")


def _load(profile: Profile, device: str, offline: bool) -> Parts:
    from anomaly_detector_ros.building import Parts
    from anomaly_detector_ros.runtime.devices import choose_device

    chosen = choose_device(device)
    fetch_missing(profile.model_names(), offline)
    return Parts(chosen, offline=offline)


def _summary(
    profile: Profile,
    calibration: Calibration,
    camera: str,
    rates: list[FalsePositiveRate],
    held_out: int,
    output: Path,
) -> dict[str, Any]:
    nominal = calibration.nominal(camera)
    return {
        "profile": profile.name,
        "distance": profile.distance["name"],
        "camera": camera,
        "cameras": [name for name in calibration.cameras if name],
        "images": nominal.images,
        "pixels": nominal.pixels,
        "seed": calibration.seed,
        "held_out_images": held_out,
        "false_positive_rates": [rate.to_dict() for rate in rates],
        "output": str(output),
    }


def _print(summary: dict[str, Any], rates: list[FalsePositiveRate]) -> None:
    of = f"camera {summary['camera']}, " if summary["camera"] else ""
    typer.echo(
        f"{of}profile {summary['profile']}, {summary['distance']} distance: fitted on "
        f"{summary['images']} images, {summary['pixels']} pixels"
    )
    if rates:
        table = Table(
            *("threshold", "asked", "measured", "95%"),
            title=f"false-positive rate on {summary['held_out_images']} images held out",
            box=None,
        )
        for rate in rates:
            table.add_row(
                f"{1 - rate.asked:g}",
                f"{rate.asked:g}",
                f"{rate.measured:.4f}",
                "" if math.isnan(rate.low) else f"{rate.low:.4f}-{rate.high:.4f}",
            )
        Console().print(table)
    typer.echo(f"saved: {summary['output']}")
