"""The page for people, written beside the results of `detect`, `bag`, `demo` and `evaluate`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_detector_ros import __version__
from anomaly_detector_ros.cli.common import make_directory, progress_bar, write_atomically
from anomaly_detector_ros.pages.page import (
    FILE,
    FOLDER,
    LAYERS,
    Column,
    Page,
    PageFrame,
    Table,
    frame_pictures,
    render_page,
)

if TYPE_CHECKING:
    import numpy as np

    from anomaly_detector_ros.bags.passes import BagReport, JudgedFrame
    from anomaly_detector_ros.evaluation.run import Evaluation
    from anomaly_detector_ros.evaluation.table.report import Report
    from anomaly_detector_ros.imaging.images import Range
    from anomaly_detector_ros.runtime.progress import Progress

EVERY = 30.0
"""Seconds after which the page of a command that still runs is written anew."""

_PICTURED = 400
"""Frames of a bag or an evaluation at most whose pictures are written."""
_PICTURED_FIRST = 100
"""How many of them are those with the most anomalous pixels; the others are spread evenly."""

_MEASURED = (
    Column("auc_pr", "AUC-PR"),
    Column("found", "Found", "share"),
    Column("false", "False alarms", "share"),
    Column("anomalous", "Anomalous in truth", "share"),
)


def save_pictures(
    folder: Path, name: str, layers: Mapping[str, np.ndarray], *, calibrated: bool
) -> None:
    """Write a frame's pictures to where the page in ``folder`` looks for them.

    Raises:
        UserError: they cannot be written.
    """
    make_directory(folder / FOLDER)
    for file, data in frame_pictures(name, layers, calibrated=calibrated).items():
        write_atomically(folder / FOLDER / file, data)


def save_page(folder: Path, page: Page) -> Path:
    """Write the page and give its path; raises UserError where it cannot be written."""
    write_atomically(folder / FILE, render_page(page, __version__).encode())
    return folder / FILE


def frames_of_results(folder: Path, results: Path, suffixes: tuple[str, ...]) -> list[PageFrame]:
    """The frames of a list of results, one JSON object a line as `detect` writes them.

    Args:
        folder: of the page.
        results: the list; lines of other versions may lack numbers.
        suffixes: which files a frame may have beside the page.
    """
    here = {file.name for file in folder.iterdir()}
    pictures = {file.name for file in (folder / FOLDER).glob("*.jpg")}
    frames = []
    for text in results.read_text().splitlines():
        try:
            line: dict[str, Any] = json.loads(text)
            name, timings = str(line["name"]), dict(line.get("timings") or {})
        except (ValueError, TypeError, KeyError):
            continue
        values = {"score": line.get("score"), "anomalous": line.get("anomalous")}
        motion = [f"{name}_diffusion.{kind}" for kind in ("mp4", "gif")]
        frames.append(
            PageFrame(
                name=name,
                layers=[key for key in LAYERS if f"{name}_{key}.jpg" in pictures],
                values={
                    key: value
                    for key, value in {**values, "seconds": timings.get("total")}.items()
                    if isinstance(value, int | float)
                },
                timings=timings,
                source=str(line.get("input", "")),
                files=[f"{name}_{kind}" for kind in suffixes if f"{name}_{kind}" in here],
                motion=next((file for file in motion if file in here), ""),
            )
        )
    return frames


def count_facts(frames: list[PageFrame]) -> list[str]:
    """How many frames there are, how many hold anomalies, and how long one took."""
    flagged = sum(frame.values.get("anomalous", 0) > 0 for frame in frames)
    plural = "s" * (len(frames) != 1)
    facts = [f"{len(frames)} frame{plural}", f"{flagged} with anomalies"]
    seconds = sorted(f.values["seconds"] for f in frames if "seconds" in f.values)
    if seconds:
        facts.append(f"{seconds[len(seconds) // 2]:.2f} s a frame")
    return facts


def save_bag_page(
    bag: Path,
    report: BagReport,
    facts: Sequence[str],
    *,
    calibrated: bool,
    grey_range: Range | None,
    progress: Progress | None = None,
) -> Path:
    """Write the page of a bag that `process_bag` wrote, into its directory.

    Args:
        progress: hears of the pictures; by default a progress bar.

    Raises:
        UserError: it cannot be written.
    """
    from anomaly_detector_ros.bags.outputs import read_outputs

    most = _PICTURED // max(1, len(report.cameras))
    first = _PICTURED_FIRST // max(1, len(report.cameras))
    frames, pictured = [], 0
    bar = progress_bar("pictures of the page", min(_PICTURED, report.frames))
    with nullcontext(progress) if progress else bar as advance:
        for camera in report.cameras:
            chosen = _chosen(camera.judged, most, first)
            layers: dict[int, list[str]] = {}
            stem = camera.camera.replace("/", "_")
            for frame in read_outputs(bag, camera.topic, chosen, grey_range):
                layers[frame.number] = list(frame.layers)
                name = f"{stem}_{frame.number:06d}"
                save_pictures(bag, name, frame.layers, calibrated=calibrated)
                pictured += 1
                advance(pictured)
            begin = camera.judged[0].timestamp if camera.judged else 0
            frames += [
                PageFrame(
                    f"{stem}_{judged.number:06d}",
                    layers.get(judged.number, ()),
                    {
                        "score": judged.score,
                        "anomalous": judged.anomalous,
                        "seconds": judged.timings.get("total", 0.0),
                    },
                    judged.timings,
                    f"{camera.topic}, {(judged.timestamp - begin) * 1e-9:.3f} s after the first",
                )
                for judged in camera.judged
            ]
    kept = []
    if pictured < len(frames):
        kept = [f"pictures of {pictured}: the {first} with most anomalous pixels of each camera, "
                "the others evenly spread"]  # fmt: skip
    when = time.strftime("%Y-%m-%d %H:%M")
    page = Page(f"Anomalies in {bag.name}", [*count_facts(frames), *facts, *kept, when], frames,
                calibrated=calibrated)  # fmt: skip
    return save_page(bag, page)


def _chosen(judged: Sequence[JudgedFrame], most: int, first: int) -> set[int]:
    """Numbers of the frames that get pictures."""
    if len(judged) <= most:
        return {frame.number for frame in judged}
    best = sorted(judged, key=lambda frame: (-frame.anomalous, -frame.score))[:first]
    chosen = {frame.number for frame in best}
    others = [frame.number for frame in judged if frame.number not in chosen]
    left = most - len(chosen)
    return chosen | {others[i * len(others) // left] for i in range(left)}


def save_evaluation_page(evaluation: Evaluation, report: Report, folder: Path) -> Path:
    """Write the page of an evaluation's frames: truth, edit and the map of each method.

    Raises:
        UserError: it cannot be written.
    """
    from anomaly_detector_ros.evaluation.table.methods import row_of

    frames: list[PageFrame] = []
    keys = {method.name: f"map_{number}" for number, method in enumerate(evaluation.methods)}
    for frame in evaluation.frames(_PICTURED):
        layers = {keys.get(key, key): layer for key, layer in frame.layers.items()}
        name = f"{len(frames):04d}_{frame.name}"
        save_pictures(folder, name, layers, calibrated=True)
        frames.append(PageFrame(name, list(layers), frame.values, source=frame.source))
    measured = max(metrics.images for metrics in report.metrics.values())
    head, *rows = report.table()
    page = Page(
        f"Evaluation on {report.dataset}",
        [
            f"{measured} frames" + f", {len(frames)} shown" * (len(frames) < measured),
            f"profile {report.profile}",
            f"“{row_of(evaluation.shown.name).title}” at its best threshold: "
            "green found, orange missed, yellow false alarm, dark void",
            time.strftime("%Y-%m-%d %H:%M"),
        ],
        frames,
        columns=_MEASURED,
        layers={
            "input": LAYERS["input"],
            "edited": LAYERS["edited"],
            "truth": "Found and missed",
            **{key: row_of(name).title for name, key in keys.items()},
        },
        start=("input", "truth"),
        table=Table(head, rows),
    )
    return save_page(folder, page)
