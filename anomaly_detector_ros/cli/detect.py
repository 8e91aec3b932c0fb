"""`anomaly-detector detect`: pictures, folders, videos and recordings to files."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anomaly_detector_ros.calibration.level import StreamLevels, levels_before
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
    TopicOption,
    append_line,
    cannot_write,
    console,
    is_launched,
    load_detector,
    make_directory,
    parse_grey_range,
    progress_bar,
    rank,
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
from anomaly_detector_ros.sources.frames import (
    Frame,
    FrameStream,
    Source,
    find_sources,
    read_sources,
)
from anomaly_detector_ros.sources.tally import Tally

if TYPE_CHECKING:
    import numpy as np

    from anomaly_detector_ros.detection import Detection
    from anomaly_detector_ros.detector import Detector
    from anomaly_detector_ros.runtime.worklist import WorkList
    from anomaly_detector_ros.synthesis.recording import Recorder

RESULTS, SUMMARY = "results.jsonl", "summary.json"
PART = 32
"""So many frames, or half as many pictures, are one piece of work of a shared run."""
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
    share: ShareOption = False,
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

    With --share, or started by accelerate launch or torchrun, all processes that run the same
    command share the frames, here and on other machines that see OUTPUT. Whenever it is run again
    it goes on from what is finished, and at last writes summary.json.

    Example: anomaly-detector detect photos/ drive.mp4 drive.mcap --output results
    """
    chosen_range = parse_grey_range(grey_range)
    stop = on_error is OnError.STOP
    sources = find_sources(inputs, topic, results=output)
    names = unique_names(sources)
    make_directory(output)
    if share or is_launched():
        load = partial(load_detector, profile, device, threshold=threshold, offline=offline)
        shared = _Shared(inputs, sources, names, output, record_diffusion, chosen_range, stop)
        _summarise(*shared.run(load, overwrite), output, as_json)
        return
    if overwrite:
        _write_results(output, _others(output, names))
    else:
        _refuse(output, names, _suffixes(record_diffusion))
    detector = load_detector(profile, device, threshold=threshold, offline=offline)
    judge = _Judge(detector, output, names, record_diffusion)
    tally = Tally(stop=stop)
    results: list[dict[str, Any]] = []
    total = sum(source.expected() for source in sources)
    page_due = 0.0
    with progress_bar("pictures", total) as advance:
        source, levels = None, StreamLevels()
        for frame in read_sources(sources, tally, grey_range=chosen_range):
            if frame.source is not source:
                source, levels = frame.source, StreamLevels()
            line = judge.look(frame, levels, tally)
            if line is not None:
                append_line(output / RESULTS, json.dumps(line))
                results.append(line)
                if time.monotonic() > page_due:
                    _write_page(output, detector, inputs)
                    page_due = time.monotonic() + EVERY
            advance(tally.read, max(tally.read, total))
    if results:
        _write_page(output, detector, inputs)
    _summarise(results, tally, output, as_json)


@dataclass(frozen=True)
class _Judge:
    """Looks at frames and writes the files of each."""

    detector: Detector
    output: Path
    names: dict[Source, str]
    record: Recording | None

    def look(self, frame: Frame, levels: StreamLevels, tally: Tally) -> dict[str, Any] | None:
        """The frame's line of results; None, and it is skipped, where the models fail.

        Args:
            frame: to look at.
            levels: of the frames of its source before it; takes its own.
            tally: counts it.
        """
        number = (frame.index or 0) + 1
        recorder = _recorder(self.detector) if self.record else None
        look = partial(self.detector.detect, before=levels.before(number), callback=recorder)
        found = tally.tried(frame.name, look, frame.pixels)
        if found is None:
            return None
        levels.add(found.level, number)
        name = result_name(self.names[frame.source], frame.index)
        if recorder is not None and self.record is not None:
            file = self.output / f"{name}_diffusion.{self.record.value}"
            write_atomically(file, _animation(recorder, frame.pixels, found, self.record))
        _write_files(self.output, name, frame.pixels, found)
        _write_pictures(self.output, name, frame.pixels, found)
        tally.processed += 1
        return _result(frame, name, found)


@dataclass(frozen=True)
class _Part:
    """Some pictures, or the frames of one source from `start` on, up to `stop` or to the last."""

    sources: list[Source]
    start: int = 0
    stop: int | None = None


class _Shared:
    """The frames of all sources, looked at by all processes that run the same command.

    A piece of work are some pictures, or some frames of a video or recording that follow on
    another; see `PART`.
    """

    def __init__(
        self,
        given: list[Path],
        sources: list[Source],
        names: dict[Source, str],
        output: Path,
        record: Recording | None,
        grey_range: tuple[float, float] | None,
        stop: bool,
    ) -> None:
        self.given = given
        self.sources, self.names, self.output, self.record = sources, names, output, record
        self.grey_range, self.stop = grey_range, stop
        self.work = output / ".shared"
        self.parts: dict[str, _Part] = {}
        self.chains: list[list[str]] = []
        self.sizes: dict[str, int] = {}
        self.inputs: list[Any] = []
        self.stream: FrameStream | None = None
        self.levels = StreamLevels()
        for is_picture, group in itertools.groupby(sources, lambda s: s.kind == "picture"):
            for each in [list(group)] if is_picture else [[one] for one in group]:
                self._cut(each, is_picture)

    def _cut(self, group: list[Source], pictures: bool) -> None:
        sizes = [s.file.stat().st_size if pictures else s.expected() for s in group]
        self.inputs += [
            [self.names[s], s.kind, s.topic, n] for s, n in zip(group, sizes, strict=True)
        ]
        count = len(group) if pictures else sizes[0]
        chain = []
        step = PART // 2 if pictures else PART
        for number, start in enumerate(range(0, count, step)):
            piece, end = f"{len(self.inputs)}-{number}", start + step
            # The last one takes what there is: a header may tell of too few.
            last = end >= count
            part = (
                _Part(group[start:end]) if pictures else _Part(group, start, None if last else end)
            )
            self.parts[piece], self.sizes[piece] = part, min(end, count) - start
            chain.append(piece)
        self.chains.append(chain)

    def run(
        self, load: Callable[[], Detector], overwrite: bool
    ) -> tuple[list[dict[str, Any]], Tally]:
        """The lines of results and the tally, whichever process did what; see `detect`."""
        from anomaly_detector_ros.bags.processing import describe_settings
        from anomaly_detector_ros.runtime.worklist import find_summary, share

        if rank():  # of a launcher's processes the first speaks for all
            console.quiet = True
        detector, suffixes = load(), _suffixes(self.record)
        self.judge = _Judge(detector, self.output, self.names, self.record)
        profile, threshold = detector.profile, detector.threshold
        settings = describe_settings(suffixes, profile, threshold, self.grey_range)
        job = {"list of inputs": self.inputs, **settings}
        summary = self.output / SUMMARY
        if not self.work.exists():  # nobody has begun
            if overwrite:
                summary.unlink(missing_ok=True)
            elif not find_summary(summary, job):
                _refuse(self.output, self.names, suffixes)
        with progress_bar("pictures", sum(self.sizes.values())) as self.advance:
            try:
                found = share(self.work, job, summary, self.chains, {}, self._do, self._merge)
            except OSError as error:
                raise cannot_write(self.output, error) from error
        tally = Tally()
        tally.add(found["tally"])
        others = set(_others(self.output, self.names))
        lines = (self.output / RESULTS).read_text().splitlines()
        return [json.loads(line) for line in lines if line not in others], tally

    def _do(self, work: WorkList, piece: str) -> dict[str, Any]:
        part, tally = self.parts[piece], Tally(stop=self.stop)
        if part.sources[0].kind == "picture":
            frames = read_sources(part.sources, tally, grey_range=self.grey_range)
            levels = None
        else:
            levels = self._levels_at(work, piece, part)
            assert self.stream is not None
            frames = self.stream.read(part.start, part.stop, tally)
        lines = []
        before = sum(self.sizes[each] for each in work.done)
        for frame in frames:
            # Pictures are no stream.
            line = self.judge.look(frame, StreamLevels() if levels is None else levels, tally)
            lines += [line] if line else []
            self.advance(before + tally.read)
        state = None if levels is None else levels.state
        return {"lines": lines, "tally": tally.state, "levels": state}

    def _levels_at(self, work: WorkList, piece: str, part: _Part) -> StreamLevels:
        """The levels of the last frames where the part begins, and the stream to read it from."""
        if self.stream is None or self.stream.source is not part.sources[0]:
            self.stream = FrameStream(part.sources[0], self.grey_range)
            self.levels = StreamLevels()
        if self.stream.at == part.start:
            return self.levels
        group, _, number = piece.rpartition("-")
        before = f"{group}-{int(number) - 1}"
        self.levels = StreamLevels()
        if before in work.done:
            self.levels = StreamLevels(*work.result(before)["levels"])
        elif self.judge.detector.distance.frame_level:
            self.levels = levels_before(part.start, partial(self._look_before, part.start))
        return self.levels

    def _look_before(self, stop: int, first: int) -> Iterator[tuple[float, int]]:
        """Level and stamp of the good frames up to the part's first."""
        assert self.stream is not None
        tally = Tally()  # they are counted elsewhere
        for frame in self.stream.read(first, stop, tally):
            found = tally.tried(frame.name, self.judge.detector.detect, frame.pixels)
            if found is not None:
                yield found.level, (frame.index or 0) + 1

    def _merge(self, work: WorkList) -> dict[str, Any]:
        tally, lines = Tally(), []
        for piece in self.parts:
            found = work.result(piece)
            tally.add(found["tally"])
            lines += found["lines"]
        ours = [json.dumps(line) for line in lines]
        _write_results(self.output, [*_others(self.output, self.names), *ours])
        if ours:
            _write_page(self.output, self.judge.detector, self.given)
        return {"inputs": len(self.sources), **tally.to_dict(), "tally": tally.state}


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


def _summarise(results: list[dict[str, Any]], tally: Tally, output: Path, as_json: bool) -> None:
    """Print what was found, and what became of the frames; raises UserError as `Tally.check`."""
    if rank():
        pass
    elif as_json:
        typer.echo(json.dumps(results, indent=2))
    else:
        for line in sorted(results, key=lambda each: -each["score"])[:10]:
            typer.echo(f"{line['score']:.3f}  {line['name']}")
        typer.echo(f"{len(results)} pictures, results in {output}")
        typer.echo(f"Look at them: {output / FILE}")
    tell(tally)
    tally.check()


def _suffixes(record: Recording | None) -> list[str]:
    return [*SUFFIXES, *([f"diffusion.{record.value}"] if record else [])]


def _refuse(output: Path, names: dict[Source, str], suffixes: list[str]) -> None:
    """Raises UserError where there are results already."""
    for source, name in names.items():
        # A video's first frame stands for all.
        first = result_name(name, None if source.kind == "picture" else 0)
        for suffix in suffixes:
            file = output / f"{first}_{suffix}"
            if file.exists():
                raise UserError(f"'{file}' exists already: give --overwrite or another --output")


def _others(output: Path, names: dict[Source, str]) -> list[str]:
    """Lines of the list of results that are of other sources than these."""
    results = output / RESULTS
    prefixes = [name for source, name in names.items() if source.kind != "picture"]
    single = {name for source, name in names.items() if source.kind == "picture"}
    lines = results.read_text().splitlines() if results.is_file() else []
    return [line for line in lines if not _is_of(line, single, prefixes)]


def _write_results(output: Path, lines: list[str]) -> None:
    write_atomically(output / RESULTS, "".join(line + "\n" for line in lines).encode())


def _is_of(line: str, names: set[str], prefixes: list[str]) -> bool:
    try:
        name = str(json.loads(line).get("name"))
    except (ValueError, AttributeError):
        return False
    return name in names or any(
        name.startswith(prefix + "_") and name[len(prefix) + 1 :].isdigit() for prefix in prefixes
    )
