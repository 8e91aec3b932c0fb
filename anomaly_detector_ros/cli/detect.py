"""`anomaly-detector detect`: pictures, folders, videos and recordings to files."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import time
from collections import Counter, deque
from collections.abc import Callable
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomaly_detector_ros.calibration.level import FRAMES
from anomaly_detector_ros.cli.common import (
    DeviceOption,
    GreyRangeOption,
    JsonOption,
    OfflineOption,
    OnError,
    OnErrorOption,
    ProfileOption,
    ThresholdOption,
    TopicOption,
    append_line,
    load_detector,
    make_directory,
    parse_grey_range,
    progress_bar,
    tell,
    write_atomically,
)
from anomaly_detector_ros.cli.page import (
    EVERY,
    count_facts,
    frames_of_results,
    save_page,
    save_pictures,
)
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.pages.page import FILE, LAYERS, Page
from anomaly_detector_ros.profiles import DEFAULT_PROFILE
from anomaly_detector_ros.sources.frames import Frame, Source, find_sources, read_sources
from anomaly_detector_ros.sources.tally import Tally

if TYPE_CHECKING:
    import numpy as np

    from anomaly_detector_ros.detection import Detection
    from anomaly_detector_ros.detector import Detector
    from anomaly_detector_ros.synthesis.recording import Recorder

RESULTS = "results.jsonl"
SUFFIXES = ("heatmap.npy", "mask.png", "segments.png", "edited.png", "overlay.png")

# File names have at most 255 bytes; what is added to a name takes up to 40.
_NAME_BYTES = 200


class Recording(str, Enum):
    """Kinds of files that show the reverse diffusion."""

    GIF = "gif"
    MP4 = "mp4"


def detect(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT...", help="Pictures, folders, videos, recordings."),
    ],
    output: Annotated[Path, typer.Option(help="Directory for the results.")],
    topic: TopicOption = None,
    grey_range: GreyRangeOption = (0.0, 0.0),
    on_error: OnErrorOption = OnError.SKIP,
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
    """Find the anomalies in pictures, folders, videos and recordings.

    Writes for each picture NAME_heatmap.npy (float32, 0 to 1), NAME_mask.png (0 or 255),
    NAME_segments.png (16 bit), NAME_edited.png and NAME_overlay.png, and a line in results.jsonl.
    NAME is the file's stem, with its extension or folder added where stems are alike, and the
    number of a video's or recording's frame. index.html is a page to look at all of them in a
    browser; it is there while the command still runs.

    --record-diffusion shows the picture beside the sample that becomes its (first) edit, at the
    size of the edit, and at last the anomalies.

    Example: anomaly-detector detect photos/ drive.mp4 drive.mcap --output results
    """
    chosen_range = parse_grey_range(grey_range)
    sources = find_sources(inputs, topic, results=output)
    names = unique_names(sources)
    make_directory(output)
    diffusion = [f"diffusion.{record_diffusion.value}"] if record_diffusion else []
    _refuse_or_forget(output, names, [*SUFFIXES, *diffusion], overwrite)
    detector = load_detector(profile, device, threshold=threshold, offline=offline)
    tally = Tally(stop=on_error is OnError.STOP)
    results: list[dict[str, Any]] = []
    total = sum(source.expected() for source in sources)
    page_due = 0.0
    with progress_bar("pictures", total) as advance:
        source, levels = None, deque[float]()
        for frame in read_sources(sources, tally, grey_range=chosen_range):
            if frame.source is not source:
                source, levels = frame.source, deque[float](maxlen=FRAMES - 1)
            recorder = _recorder(detector) if record_diffusion else None
            found = tally.tried(
                frame.name,
                partial(detector.detect, frame.pixels, before=levels, callback=recorder),
            )
            if found is not None:
                levels.append(found.level)
                name = result_name(names[frame.source], frame.index)
                if recorder is not None and record_diffusion is not None:
                    file = output / f"{name}_diffusion.{record_diffusion.value}"
                    data = _animation(recorder, frame.pixels, found, record_diffusion)
                    write_atomically(file, data)
                _write_files(output, name, frame.pixels, found)
                _write_pictures(output, name, frame.pixels, found)
                line = _result(frame, name, found)
                append_line(output / RESULTS, json.dumps(line))
                results.append(line)
                tally.processed += 1
                if time.monotonic() > page_due:
                    _write_page(output, detector, inputs)
                    page_due = time.monotonic() + EVERY
            advance(tally.read, max(tally.read, total))
    if results:
        _write_page(output, detector, inputs)
    _summarise(results, output, as_json)
    tell(tally)
    tally.check()


def unique_names(sources: list[Source]) -> dict[Source, str]:
    """A name for each source's results: its stem, with more where stems are alike.

    Extension, folder or a number are added. Names too long for a file are cut, with a hash.

    >>> files = [Path("a/x.png"), Path("b/x.png"), Path("b/y.png"), Path("b/y.jpg")]
    >>> unique_names([Source(file, "picture") for file in files]).values()
    dict_values(['a_x', 'b_x', 'y_png', 'y_jpg'])
    """
    named: dict[Source, str] = {}
    spellings: tuple[Callable[[Path], str], ...] = (
        lambda f: f.stem,
        lambda f: f"{f.stem}_{f.suffix[1:].lower()}",
        lambda f: f"{f.parent.name}_{f.stem}",
        lambda f: f"{f.parent.name}_{f.stem}_{f.suffix[1:].lower()}",
    )
    # Frames are numbered, so a picture may not be called like a frame.
    numbered = {s.file.stem for s in sources if s.kind != "picture"}
    for spelling in spellings:
        spelt = {each: _fitting(spelling(each.file)) for each in sources if each not in named}
        counts = Counter(spelt.values()) + Counter(named.values())
        for each, name in spelt.items():
            stem, _, number = name.rpartition("_")
            if counts[name] == 1 and not (number.isdigit() and stem in numbered):
                named[each] = name
    for each in sources:
        if each not in named:
            stem = _fitting(spellings[1](each.file))
            free = (f"{stem}_n{number}" for number in itertools.count(1))
            named[each] = next(name for name in free if name not in named.values())
    return {each: named[each] for each in sources}


def result_name(name: str, index: int | None) -> str:
    """Name of a frame's results; of a picture, without a number, the source's own."""
    return name if index is None else f"{name}_{index:06d}"


def _fitting(name: str) -> str:
    data = name.encode(errors="surrogateescape")
    if len(data) <= _NAME_BYTES:
        return name
    kept = data[: _NAME_BYTES - 10].decode(errors="ignore")
    return f"{kept}_{hashlib.sha256(data).hexdigest()[:8]}"


def _recorder(detector: Detector) -> Recorder:
    from anomaly_detector_ros.synthesis.recording import Recorder
    from anomaly_detector_ros.synthesis.spaces import space_of

    return Recorder(space_of(detector.denoiser))


def _animation(recorder: Recorder, image: np.ndarray, found: Detection, kind: Recording) -> bytes:
    """The edit's way from noise beside the image, and at last what is found."""
    from anomaly_detector_ros.imaging.animation import encode_animation, side_by_side
    from anomaly_detector_ros.imaging.rendering import render

    if not recorder.pictures:
        raise UserError("the profile's sampler tells nothing of its steps: leave out the recording")
    pictures = [side_by_side(image, each) for each in recorder.pictures]
    pictures.append(side_by_side(render("overlay", image, found), recorder.pictures[-1]))
    return encode_animation(pictures, kind.value)


def _write_files(output: Path, name: str, image: np.ndarray, found: Detection) -> None:
    import numpy as np

    from anomaly_detector_ros.imaging.rendering import encode_png, render

    heatmap = io.BytesIO()
    np.save(heatmap, render("heatmap", image, found))
    write_atomically(output / f"{name}_heatmap.npy", heatmap.getvalue())
    for kind in ("mask", "segments", "edited", "overlay"):
        write_atomically(output / f"{name}_{kind}.png", encode_png(render(kind, image, found)))


def _write_pictures(output: Path, name: str, image: np.ndarray, found: Detection) -> None:
    from anomaly_detector_ros.imaging.rendering import render

    layers = {key: render(key, image, found) for key in LAYERS if key != "input"}
    save_pictures(output, name, {"input": image, **layers}, calibrated=found.calibrated)


def _write_page(output: Path, detector: Detector, inputs: list[Path]) -> None:
    """The page of all results in the directory, of earlier runs too."""
    kinds = (*SUFFIXES, "diffusion.gif", "diffusion.mp4")
    frames = frames_of_results(output, output / RESULTS, kinds)
    named = ", ".join(path.name or str(path) for path in inputs[:3])
    more = f" and {len(inputs) - 3} more" if len(inputs) > 3 else ""
    facts = [
        *count_facts(frames),
        f"profile {detector.profile.name}",
        f"threshold {detector.threshold:g}",
        time.strftime("%Y-%m-%d %H:%M"),
    ]
    title = f"Anomalies in {named}{more}"
    page = Page(title, facts, frames, calibrated=detector.calibrated, links=[RESULTS])
    save_page(output, page)


def _result(frame: Frame, name: str, found: Detection) -> dict[str, Any]:
    line: dict[str, Any] = {"input": str(frame.source.file), "name": name}
    if frame.index is not None:
        line["frame"] = frame.index
    measured = {"score": found.score, "anomalous": float(found.mask.mean())}
    return {**line, **measured, "timings": found.timings}


def _summarise(results: list[dict[str, Any]], output: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(results, indent=2))
        return
    for line in sorted(results, key=lambda each: -each["score"])[:10]:
        typer.echo(f"{line['score']:.3f}  {line['name']}")
    typer.echo(f"{len(results)} pictures, results in {output}")
    typer.echo(f"Look at them: {output / FILE}")


def _refuse_or_forget(
    output: Path, names: dict[Source, str], suffixes: list[str], overwrite: bool
) -> None:
    """Refuse to replace earlier results, or forget their lines in the list of results."""
    for source, name in names.items():
        # A video's first frame stands for all.
        first = result_name(name, None if source.kind == "picture" else 0)
        for suffix in suffixes:
            file = output / f"{first}_{suffix}"
            if file.exists() and not overwrite:
                raise UserError(f"'{file}' exists already: give --overwrite or another --output")
    results = output / RESULTS
    if overwrite and results.is_file():
        prefixes = [name for source, name in names.items() if source.kind != "picture"]
        single = {name for source, name in names.items() if source.kind == "picture"}
        kept = [
            line for line in results.read_text().splitlines() if not _is_of(line, single, prefixes)
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
