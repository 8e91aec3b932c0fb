"""What `detect` leaves in its directory: files of each picture, lines of results, a page."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_detector_ros.calibration.level import StreamLevels
from anomaly_detector_ros.cli.common import append_line, write_atomically
from anomaly_detector_ros.cli.page import (
    count_facts,
    frames_of_results,
    save_page,
    save_pictures,
)
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.pages.page import LAYERS, Page
from anomaly_detector_ros.sources.frames import Frame, Source
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


@dataclass(frozen=True)
class Results:
    """The results of some sources.

    Attributes:
        directory: for them; there may be those of others, from earlier runs.
        given: what the command was given, for the page's title.
        names: of the sources; see `unique_names`.
        record: the kind of files that show the reverse diffusion; None for none.
    """

    directory: Path
    given: list[Path]
    names: dict[Source, str]
    record: Recording | None = None

    @property
    def suffixes(self) -> list[str]:
        """What the names of a picture's files end in."""
        return [*SUFFIXES, *([f"diffusion.{self.record.value}"] if self.record else [])]

    def refuse(self) -> None:
        """Raises UserError where there are some of these already."""
        for source, name in self.names.items():
            # A video's first frame stands for all.
            first = result_name(name, None if source.kind == "picture" else 0)
            for suffix in self.suffixes:
                file = self.directory / f"{first}_{suffix}"
                if file.exists():
                    raise UserError(
                        f"'{file}' exists already: give --overwrite or another --output"
                    )

    def look(
        self, detector: Detector, frame: Frame, levels: StreamLevels, tally: Tally
    ) -> dict[str, Any] | None:
        """Look at a frame and write its files; gives its line, or None where the models fail.

        Args:
            detector: looks at it.
            frame: to look at.
            levels: of the frames of its source before it; takes its own.
            tally: counts it.
        """
        number = (frame.index or 0) + 1
        recorder = _recorder(detector) if self.record else None
        look = partial(detector.detect, before=levels.before(number), callback=recorder)
        found = tally.tried(frame.name, look, frame.pixels)
        if found is None:
            return None
        levels.add(found.level, number)
        name = result_name(self.names[frame.source], frame.index)
        if recorder is not None and self.record is not None:
            file = self.directory / f"{name}_diffusion.{self.record.value}"
            write_atomically(file, _animation(recorder, frame.pixels, found, self.record))
        _write_files(self.directory, name, frame.pixels, found)
        _write_pictures(self.directory, name, frame.pixels, found)
        tally.processed += 1
        return _result(frame, name, found)

    def append(self, line: dict[str, Any]) -> None:
        """Add a line to the list of results."""
        append_line(self.directory / RESULTS, json.dumps(line))

    def replace(self, lines: list[dict[str, Any]]) -> None:
        """Make these the lines of these sources, behind those of others."""
        others, ours = self._lines()
        if lines or ours:
            text = "".join(line + "\n" for line in (*others, *map(json.dumps, lines)))
            write_atomically(self.directory / RESULTS, text.encode())

    def read(self) -> list[dict[str, Any]]:
        """The lines of these sources."""
        return [json.loads(line) for line in self._lines()[1]]

    def _lines(self) -> tuple[list[str], list[str]]:
        """The list's lines of other sources, and of these."""
        file = self.directory / RESULTS
        prefixes = [name for source, name in self.names.items() if source.kind != "picture"]
        single = {name for source, name in self.names.items() if source.kind == "picture"}
        others, ours = list[str](), list[str]()
        for line in file.read_text().splitlines() if file.is_file() else ():
            (ours if _is_of(line, single, prefixes) else others).append(line)
        return others, ours

    def write_page(self, detector: Detector) -> None:
        """The page of all results in the directory, of earlier runs too."""
        kinds = (*SUFFIXES, "diffusion.gif", "diffusion.mp4")
        frames = frames_of_results(self.directory, self.directory / RESULTS, kinds)
        named = ", ".join(path.name or str(path) for path in self.given[:3])
        more = f" and {len(self.given) - 3} more" if len(self.given) > 3 else ""
        facts = [
            *count_facts(frames),
            f"profile {detector.profile.name}",
            f"threshold {detector.threshold:g}",
            time.strftime("%Y-%m-%d %H:%M"),
        ]
        title = f"Anomalies in {named}{more}"
        page = Page(title, facts, frames, calibrated=detector.calibrated, links=[RESULTS])
        save_page(self.directory, page)


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


def _result(frame: Frame, name: str, found: Detection) -> dict[str, Any]:
    line: dict[str, Any] = {"input": str(frame.source.file), "name": name}
    if frame.index is not None:
        line["frame"] = frame.index
    measured = {"score": found.score, "anomalous": float(found.mask.mean())}
    return {**line, **measured, "timings": found.timings}


def _is_of(line: str, names: set[str], prefixes: list[str]) -> bool:
    try:
        name = str(json.loads(line).get("name"))
    except (ValueError, AttributeError):
        return False
    return name in names or any(
        name.startswith(prefix + "_") and name[len(prefix) + 1 :].isdigit() for prefix in prefixes
    )
