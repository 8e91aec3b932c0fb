"""`anomaly-detector demo`: pictures through a real ROS graph, on any machine."""

from __future__ import annotations

import importlib.util
import json
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
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
    console,
    fetch_missing,
    make_directory,
    parse_grey_range,
    progress_bar,
    tell,
    write_atomically,
)
from anomaly_detector_ros.cli.page import count_facts, save_page, save_pictures
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.pages.page import (
    ANOMALOUS,
    FILE,
    FOLDER,
    SCORE,
    Column,
    Page,
    PageFrame,
)
from anomaly_detector_ros.profiles import DEFAULT_PROFILE, Profile, load_profile
from anomaly_detector_ros.runtime.resources import share_dir
from anomaly_detector_ros.sources.tally import Skipped, Tally

if TYPE_CHECKING:
    from anomaly_detector_ros.demo.graph import Counts, Playback
    from anomaly_detector_ros.runtime.progress import Progress

_MADE = ("bag", "overlays", "logs", "summary.json", FILE, FOLDER)
_COLUMNS = (ANOMALOUS, SCORE, Column("seconds", "Latency", "seconds"))
_SLOW_LOADING = 20.0
"""Seconds from which it is told why models take so long."""
_SLOW_FIRST = 2.0
"""How many times as long as the others the first picture may take, untold."""


def demo(
    output: Annotated[Path, typer.Option(help="Directory for overlays, bag and logs.")] = Path(
        "demo_output"
    ),
    images: Annotated[
        list[Path] | None,
        typer.Option(
            help="Pictures, folders, videos or recordings; repeatable; default: the demo's own."
        ),
    ] = None,
    bag: Annotated[Path | None, typer.Option(help="Recording to play instead.")] = None,
    topic: TopicOption = None,
    grey_range: GreyRangeOption = (0.0, 0.0),
    on_error: OnErrorOption = OnError.SKIP,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1000,
            help="Pictures per second, in time or not; default: the next when the node has "
            "answered the one before, so that none is dropped.",
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures to play, over and over; default: each once."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Heatmap value from which a pixel is an anomaly; default: the profile's.",
        ),
    ] = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    device: DeviceOption = "auto",
    offline: OfflineOption = False,
    as_json: JsonOption = False,
) -> None:
    """Play pictures through a real ROS 2 graph: player, detector node and recorder processes.

    Prints how many pictures the node received, processed and dropped, its rate and the latency from
    the picture's stamp to the recorder. Leaves overlays, a bag and index.html, a page to look at in
    a browser, in OUTPUT. Needs no network; the graph is this machine's own, in a ROS domain of its
    own.

    Example: anomaly-detector demo --rate 4 --output demo_output
    """
    _require_ros()
    from anomaly_detector_ros.demo import camera
    from anomaly_detector_ros.demo.graph import Playback, run_graph

    playback = Playback(
        _paths(images, bag),
        rate,
        count,
        topic,
        parse_grey_range(grey_range) or (0.0, 0.0),
        on_error.value,
        None if images or bag else share_dir("demo") / camera.FILE,
    )
    for source in playback.sources:
        _refuse_to_delete(source.file.resolve(), output)
    _prepare(output)
    chosen = load_profile(profile)
    fetch_missing(chosen.model_names(), offline)
    threshold = chosen.threshold if threshold is None else threshold
    profile_path = str(Path(profile).resolve()) if profile.endswith((".yaml", ".yml")) else profile
    console.print(
        f"{playback.expected} pictures go through a ROS 2 graph of three processes, a player, the "
        f"detector and a recorder. What they leave goes to '{output}'.",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    with progress_bar("starting", playback.expected) as advance:
        summary = run_graph(
            playback,
            output,
            {
                "profile": profile_path,
                "device": device,
                "threshold": float(threshold),
                "offline": offline,
            },
            report=_teller(advance),
        )
    console.print("the page and the overlays are made of the bag", markup=False)
    frames = _write_pictures(output, playback, chosen)
    facts = [*count_facts(frames), f"profile {chosen.name}", f"threshold {threshold:g}"]
    _tell_first(frames)
    result = _result(summary, len(frames))
    write_atomically(output / "summary.json", json.dumps(result, indent=2).encode())
    tell(_tally(summary))
    for line in summary["played"].get("lines", ()):
        console.print(line, style="yellow", markup=False, soft_wrap=True)
    page = Page(
        "Anomalies in the pictures of the demo" if not (images or bag) else
        f"Anomalies in {', '.join(path.name for path in playback.paths[:3])}",
        [*facts, "time is from the picture's stamp to the recorder",
         time.strftime("%Y-%m-%d %H:%M")],
        frames,
        columns=_COLUMNS,
        calibrated=bool(chosen.calibration),
        links=["summary.json"],
    )  # fmt: skip
    save_page(output, page)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        _print(result, frames, output)
    if not result["recorded"]:
        raise UserError(f"no frame came through the graph: see '{output / 'logs'}'")


def _teller(advance: Progress) -> Callable[[str, Counts], None]:
    """Says what goes on, a line for each part of it, and how far the pictures are."""
    from anomaly_detector_ros.demo.graph import LOADING

    begun = time.monotonic()
    doing, since = "", begun

    def report(what: str, counts: Counts) -> None:
        nonlocal doing, since
        now = time.monotonic()
        if what != doing:
            if doing == LOADING and now - since > _SLOW_LOADING:
                console.print(
                    f"the models took {now - since:.0f} s: Python's libraries and the weights come "
                    "from the disk the first time, later from memory; a robot's node does it once",
                    style="yellow", markup=False, soft_wrap=True,
                )  # fmt: skip
            console.print(f"{now - begun:5.0f} s  {what}", markup=False)
            doing, since = what, now
        advance(counts.processed + counts.dropped, None, what)

    return report


def _write_pictures(output: Path, playback: Playback, profile: Profile) -> list[PageFrame]:
    """The frames of the bag that the node answered; writes overlays and the page's pictures."""
    from anomaly_detector_ros.bags.outputs import read_outputs
    from anomaly_detector_ros.demo.graph import CAMERA
    from anomaly_detector_ros.detection import frame_score
    from anomaly_detector_ros.imaging.rendering import encode_png

    make_directory(output / "overlays")
    topic = f"/{CAMERA}/image_raw" + ("/compressed" * (playback.transport == "compressed"))
    frames: list[PageFrame] = []
    for frame in read_outputs(output / "bag", topic):
        if not {"heatmap", "mask", "overlay"} <= frame.layers.keys():
            continue
        name = f"{len(frames):04d}"
        overlay = f"overlays/{name}.png"
        write_atomically(output / overlay, encode_png(frame.layers["overlay"]))
        save_pictures(output, name, frame.layers, calibrated=bool(profile.calibration))
        values = {
            "score": frame_score(frame.layers["heatmap"]),
            "anomalous": float((frame.layers["mask"] > 0).mean()),
            "seconds": (frame.answered - frame.stamp) * 1e-9,
        }
        frames.append(PageFrame(name, list(frame.layers), values, files=[overlay]))
    return frames


def _require_ros() -> None:
    needed = ("rclpy", "sensor_msgs", "diagnostic_msgs")
    missing = [module for module in needed if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(
            f"ROS 2 is not there ('{missing[0]}' cannot be imported): source its setup.bash, or "
            "`pip install 'anomaly_detector_ros[ros]'`"
        )


def _paths(images: list[Path] | None, bag: Path | None) -> tuple[Path, ...]:
    """What to play, from the root of the file system."""
    if bag is not None and images:
        raise UserError("--images and --bag exclude each other: give one of them")
    given = [bag] if bag is not None else images
    if not given:
        try:
            given = [share_dir("demo") / "images"]
        except FileNotFoundError as error:
            raise UserError(f"{error}, or give --images or --bag") from error
    return tuple(path.resolve() for path in given)


def _refuse_to_delete(source: Path, output: Path) -> None:
    """Refuse an earlier demo's bag or overlays as input where the new demo would replace them."""
    if output.resolve() in (source, *source.parents):
        raise UserError(f"'{source}' lies in '{output}', which is replaced: give another --output")


def _prepare(output: Path) -> None:
    """Make the output directory; what an earlier demo left there is replaced, nothing else."""
    if output.is_dir():
        names = sorted(p.name for p in output.iterdir())
        foreign = [name for name in names if name.removesuffix(".partial") not in _MADE]
        if foreign:
            raise UserError(
                f"'{output}' holds '{foreign[0]}', which is no demo's: give another --output"
            )
        shutil.rmtree(output, ignore_errors=True)
    make_directory(output)


def _result(summary: dict[str, Any], overlays: int) -> dict[str, Any]:
    from anomaly_detector_ros.demo.graph import HEATMAP

    counts = asdict(summary["counts"])
    heatmap = summary["topics"].get(HEATMAP, {"messages": 0})
    latency = heatmap.get("latency", {})
    played = summary["played"].get("frames", {"processed": 0})
    return {
        "played": played["processed"],
        "received": counts["received"],
        "processed": counts["processed"],
        "dropped": counts["dropped"],
        "drop_reasons": counts["drop_reasons"],
        "recorded": heatmap["messages"],
        "rate_hz": heatmap.get("rate"),
        "latency_median_s": latency.get("median"),
        "latency_worst_s": latency.get("max"),
        "overlays": overlays,
    }


def _tally(summary: dict[str, Any]) -> Tally:
    """The frames that were played or could not be read, those that the node dropped among them."""
    tally, counts = Tally(), summary["counts"]
    tally.processed = counts.processed
    reasons = {**summary["played"].get("frames", {}).get("skipped", {}), **counts.drop_reasons}
    tally.skipped = {reason: Skipped(number) for reason, number in reasons.items()}
    return tally


def _tell_first(frames: list[PageFrame]) -> None:
    """Why the first picture took so long, if it did."""
    first, *others = [frame.values["seconds"] for frame in frames] or [0.0]
    if others and first > _SLOW_FIRST * statistics.median(others):
        console.print(
            f"the first picture took {first:.1f} s, the others {statistics.median(others):.1f} s: "
            "memory and kernels are set up with the first one",
            style="yellow", markup=False, soft_wrap=True,
        )  # fmt: skip


def _print(result: dict[str, Any], frames: list[PageFrame], output: Path) -> None:
    """One line of result, the numbers behind it, and what there is to look at, the page last."""
    flagged = sum(frame.values["anomalous"] > 0 for frame in frames)
    line = (
        f"{result['recorded']} of {result['played']} pictures came back, {flagged} with anomalies"
    )
    if result["latency_median_s"] is not None:
        line += f", {result['latency_median_s']:.2f} s each"
    typer.echo(line)
    table = Table(box=None, show_header=False)
    reasons = ", ".join(f"{n} {reason}" for reason, n in result["drop_reasons"].items())
    table.add_row("played", str(result["played"]))
    table.add_row("received", str(result["received"]))
    table.add_row("processed", str(result["processed"]))
    table.add_row("dropped", str(result["dropped"]) + (f" ({reasons})" if reasons else ""))
    table.add_row("recorded", str(result["recorded"]))
    if result["rate_hz"] is not None:
        table.add_row("rate", f"{result['rate_hz']:.2f} Hz")
    if result["latency_median_s"] is not None:
        median, worst = result["latency_median_s"] * 1e3, result["latency_worst_s"] * 1e3
        table.add_row("latency", f"median {median:.0f} ms, worst {worst:.0f} ms")
    table.add_row("overlays", str(output / "overlays"))
    table.add_row("bag", str(output / "bag"))
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(table)
    typer.echo(f"Look at it in a browser: {output / FILE}")
