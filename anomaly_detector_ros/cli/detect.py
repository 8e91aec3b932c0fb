"""`anomaly-detector detect`: pictures, folders and videos to files."""

from __future__ import annotations

import io
import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomaly_detector_ros.cli.common import (
    DeviceOption,
    JsonOption,
    OfflineOption,
    OnError,
    ProfileOption,
    ThresholdOption,
    append_line,
    console,
    load_detector,
    make_directory,
    progress_bar,
    write_atomically,
)
from anomaly_detector_ros.cli.inputs import Source, UnreadableError, find_sources, frames_of
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.profiles import DEFAULT_PROFILE

if TYPE_CHECKING:
    import numpy as np

    from anomaly_detector_ros.detection import Detection
    from anomaly_detector_ros.detector import Detector

RESULTS = "results.jsonl"
SUFFIXES = ("heatmap.npy", "mask.png", "segments.png", "edited.png", "overlay.png")


class Recording(str, Enum):
    """Kinds of files that show the reverse diffusion."""

    GIF = "gif"
    MP4 = "mp4"


def detect(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT...", help="Pictures, folders of them, videos.")
    ],
    output: Annotated[Path, typer.Option(help="Directory for the results.")],
    on_error: Annotated[
        OnError,
        typer.Option(help="With an unreadable input: skip it and fail at the end, or stop."),
    ] = OnError.SKIP,
    record_diffusion: Annotated[
        Recording | None,
        typer.Option(help="Write NAME_diffusion.gif or .mp4 too: the edit on its way from noise."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace earlier results.")
    ] = False,
    profile: ProfileOption = DEFAULT_PROFILE,
    device: DeviceOption = "auto",
    threshold: ThresholdOption = None,
    offline: OfflineOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find the anomalies in pictures, folders of pictures, or videos.

    Writes for each picture NAME_heatmap.npy (float32, 0 to 1), NAME_mask.png (0 or 255),
    NAME_segments.png (16 bit), NAME_edited.png and NAME_overlay.png, and a line in results.jsonl.
    NAME is the file's stem, with its extension or folder added where stems are alike.

    --record-diffusion shows the picture beside the sample that becomes its (first) edit, at the
    size of the edit, and at last the anomalies.

    Example: anomaly-detector detect photos/ drive.mp4 --output results
    """
    sources = find_sources(inputs, output)
    make_directory(output)
    diffusion = [f"diffusion.{record_diffusion.value}"] if record_diffusion else []
    _refuse_or_forget(output, sources, [*SUFFIXES, *diffusion], overwrite)
    detector = load_detector(profile, device, threshold=threshold, offline=offline)
    results: list[dict[str, Any]] = []
    failures: list[str] = []
    done, total = 0, sum(source.frames for source in sources)
    with progress_bar("pictures", total) as advance:
        for source in sources:
            try:
                for name, index, image in frames_of(source):
                    found = _detect(detector, image, output / name, record_diffusion)
                    _write_files(output, name, image, found)
                    line = _result(source, name, index, found)
                    append_line(output / RESULTS, json.dumps(line))
                    results.append(line)
                    done += 1
                    advance(done, max(done, total))
            except UnreadableError as error:
                if on_error is OnError.STOP:
                    raise UserError(str(error)) from error
                failures.append(str(error))
                console.print(f"skipped: {error}", style="yellow", markup=False, soft_wrap=True)
                done += 1
                advance(done, max(done, total))
    _summarise(results, output, as_json)
    if failures:
        raise UserError(
            f"{len(failures)} of {len(sources)} inputs could not be read, the others' results "
            f"are in '{output}'; the first: {failures[0]}"
        )


def _detect(
    detector: Detector, image: np.ndarray, stem: Path, recording: Recording | None
) -> Detection:
    """What is found in an image; its edit's way from noise goes to a file beside the others."""
    if recording is None:
        return detector.detect(image)
    from anomaly_detector_ros.imaging.animation import encode_animation, side_by_side
    from anomaly_detector_ros.imaging.rendering import render
    from anomaly_detector_ros.synthesis.recording import Recorder
    from anomaly_detector_ros.synthesis.spaces import space_of

    recorder = Recorder(space_of(detector.denoiser))
    found = detector.detect(image, callback=recorder)
    if not recorder.pictures:
        raise UserError("the profile's sampler tells nothing of its steps: leave out the recording")
    pictures = [side_by_side(image, each) for each in recorder.pictures]
    pictures.append(side_by_side(render("overlay", image, found), recorder.pictures[-1]))
    data = encode_animation(pictures, recording.value)
    write_atomically(stem.with_name(f"{stem.name}_diffusion.{recording.value}"), data)
    return found


def _write_files(output: Path, name: str, image: np.ndarray, found: Detection) -> None:
    import numpy as np

    from anomaly_detector_ros.imaging.rendering import encode_png, render

    heatmap = io.BytesIO()
    np.save(heatmap, render("heatmap", image, found))
    write_atomically(output / f"{name}_heatmap.npy", heatmap.getvalue())
    for kind in ("mask", "segments", "edited", "overlay"):
        write_atomically(output / f"{name}_{kind}.png", encode_png(render(kind, image, found)))


def _result(source: Source, name: str, index: int | None, found: Detection) -> dict[str, Any]:
    line: dict[str, Any] = {"input": str(source.file), "name": name}
    if index is not None:
        line["frame"] = index
    return {**line, "score": found.score, "timings": found.timings}


def _summarise(results: list[dict[str, Any]], output: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(results, indent=2))
        return
    for line in sorted(results, key=lambda each: -each["score"])[:10]:
        typer.echo(f"{line['score']:.3f}  {line['name']}")
    typer.echo(f"{len(results)} pictures, results in {output}")


def _refuse_or_forget(
    output: Path, sources: list[Source], suffixes: list[str], overwrite: bool
) -> None:
    """Refuse to replace earlier results, or forget their lines in the list of results."""
    for source in sources:
        for name in source.names_to_expect():
            for suffix in suffixes:
                file = output / f"{name}_{suffix}"
                if file.exists() and not overwrite:
                    raise UserError(
                        f"'{file}' exists already: give --overwrite or another --output"
                    )
    results = output / RESULTS
    if overwrite and results.is_file():
        prefixes = [source.name for source in sources if source.video]
        names = {source.name for source in sources if not source.video}
        kept = [
            line for line in results.read_text().splitlines() if not _is_of(line, names, prefixes)
        ]
        write_atomically(results, "".join(line + "\n" for line in kept).encode())


def _is_of(line: str, names: set[str], prefixes: list[str]) -> bool:
    try:
        name = str(json.loads(line).get("name"))
    except (ValueError, AttributeError):
        return False
    return name in names or any(
        name.startswith(prefix + "_") and name[len(prefix) + 1 :].isdigit() for prefix in prefixes
    )
