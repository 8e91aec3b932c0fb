"""`anomaly-detector detect`: pictures, folders, videos and recordings to files."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
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
    cannot_write,
    console,
    is_launched,
    load_detector,
    make_directory,
    parse_grey_range,
    progress_bar,
    rank,
    tell,
)
from anomaly_detector_ros.cli.page import EVERY
from anomaly_detector_ros.cli.results import Recording, Results, unique_names
from anomaly_detector_ros.pages.page import FILE
from anomaly_detector_ros.profiles import DEFAULT_PROFILE
from anomaly_detector_ros.sources.frames import FrameStream, Source, find_sources, read_sources
from anomaly_detector_ros.sources.tally import Tally

if TYPE_CHECKING:
    from anomaly_detector_ros.detector import Detector
    from anomaly_detector_ros.runtime.worklist import WorkList

SUMMARY = "summary.json"
PART = 32
"""So many frames, or half as many pictures, are one piece of work of a shared run."""


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
    results = Results(output, inputs, unique_names(sources), record_diffusion)
    make_directory(output)
    shared = _Shared(results, sources, chosen_range, stop) if share or is_launched() else None
    if shared is None:
        if overwrite:
            results.replace([])
        else:
            results.refuse()
    detector = load_detector(profile, device, threshold=threshold, offline=offline)
    if shared is not None:
        tally = shared.run(detector, overwrite)
        _summarise(results.read(), tally, output, as_json)
        return
    tally = Tally(stop=stop)
    lines: list[dict[str, Any]] = []
    total = sum(source.expected() for source in sources)
    page_due = 0.0
    with progress_bar("pictures", total) as advance:
        source, levels = None, StreamLevels()
        for frame in read_sources(sources, tally, grey_range=chosen_range):
            if frame.source is not source:
                source, levels = frame.source, StreamLevels()
            line = results.look(detector, frame, levels, tally)
            if line is not None:
                results.append(line)
                lines.append(line)
                if time.monotonic() > page_due:
                    results.write_page(detector)
                    page_due = time.monotonic() + EVERY
            advance(tally.read, max(tally.read, total))
    if lines:
        results.write_page(detector)
    _summarise(lines, tally, output, as_json)


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
        results: Results,
        sources: list[Source],
        grey_range: tuple[float, float] | None,
        stop: bool,
    ) -> None:
        self.results, self.sources, self.grey_range, self.stop = results, sources, grey_range, stop
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
            [self.results.names[s], s.kind, s.topic, n] for s, n in zip(group, sizes, strict=True)
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

    def run(self, detector: Detector, overwrite: bool) -> Tally:
        """Look at the frames until all are done, by whichever process; gives all their tally."""
        from anomaly_detector_ros.bags.processing import describe_settings
        from anomaly_detector_ros.runtime.worklist import find_summary, share

        if rank():  # of a launcher's processes the first speaks for all
            console.quiet = True
        self.detector, results = detector, self.results
        profile, threshold = detector.profile, detector.threshold
        settings = describe_settings(results.suffixes, profile, threshold, self.grey_range)
        job = {"list of inputs": self.inputs, **settings}
        work, summary = results.directory / ".shared", results.directory / SUMMARY
        if not work.exists():  # nobody has begun
            if overwrite:
                summary.unlink(missing_ok=True)
            elif not find_summary(summary, job):
                results.refuse()
        with progress_bar("pictures", sum(self.sizes.values())) as self.advance:
            try:
                found = share(work, job, summary, self.chains, {}, self._do, self._merge)
            except OSError as error:
                raise cannot_write(results.directory, error) from error
        tally = Tally()
        tally.add(found["tally"])
        return tally

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
            before_it = StreamLevels() if levels is None else levels
            line = self.results.look(self.detector, frame, before_it, tally)
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
        elif self.detector.distance.frame_level:
            self.levels = levels_before(part.start, partial(self._look_before, part.start))
        return self.levels

    def _look_before(self, stop: int, first: int) -> Iterator[tuple[float, int]]:
        """Level and stamp of the good frames up to the part's first."""
        assert self.stream is not None
        tally = Tally()  # they are counted elsewhere
        for frame in self.stream.read(first, stop, tally):
            found = tally.tried(frame.name, self.detector.detect, frame.pixels)
            if found is not None:
                yield found.level, (frame.index or 0) + 1

    def _merge(self, work: WorkList) -> dict[str, Any]:
        tally, lines = Tally(), []
        for piece in self.parts:
            found = work.result(piece)
            tally.add(found["tally"])
            lines += found["lines"]
        self.results.replace(lines)
        if lines:
            self.results.write_page(self.detector)
        return {"inputs": len(self.sources), **tally.to_dict(), "tally": tally.state}


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
