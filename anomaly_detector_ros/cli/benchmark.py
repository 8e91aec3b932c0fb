"""`anomaly-detector benchmark`: time and memory of a profile on this machine."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from anomaly_detector_ros.cli.common import (
    DeviceOption,
    JsonOption,
    OfflineOption,
    ProfileOption,
    load_detector,
    progress_bar,
)
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.profiles import DEFAULT_PROFILE

if TYPE_CHECKING:
    import numpy as np

    from anomaly_detector_ros.detector import Detector


def benchmark(
    image: Annotated[
        Path | None, typer.Option(help="Picture to run on; default: the first of the demo's.")
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Two profiles, run in turns; gives the ratio of A to B."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Measured runs.")] = 10,
    warmup: Annotated[int, typer.Option(min=0, help="Runs before, which are not measured.")] = 2,
    profile: ProfileOption = DEFAULT_PROFILE,
    device: DeviceOption = "auto",
    offline: OfflineOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure time per stage and end to end, throughput and peak memory on this machine.

    Example: anomaly-detector benchmark --repeats 20

    Example: anomaly-detector benchmark --compare embedded light
    """
    from anomaly_detector_ros.images import read_rgb

    picture = read_rgb(image or _demo_picture())
    profiles = list(compare) if compare else [profile]
    detectors = [load_detector(name, device, offline=offline) for name in profiles]
    runs = _measure(detectors, picture, repeats, warmup)
    height, width = picture.shape[:2]
    result: dict[str, Any] = {
        "image": f"{width}x{height}",
        "device": str(detectors[0].device),
        "repeats": repeats,
        "profiles": [
            {"profile": name, **summarise(own)} for name, own in zip(profiles, runs, strict=True)
        ],
        "peak_memory_bytes": _peak_memory(detectors[0]),
    }
    if compare:
        medians = [each["stages"]["end to end"]["median"] for each in result["profiles"]]
        result["ratio"] = medians[0] / medians[1]
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        _print(result)


def _demo_picture() -> Path:
    from anomaly_detector_ros.images import find_images
    from anomaly_detector_ros.resources import share_dir

    try:
        return find_images(share_dir("demo") / "images")[0]
    except FileNotFoundError as error:
        raise UserError(f"{error}, or give --image") from error


def _measure(
    detectors: list[Detector], picture: np.ndarray, repeats: int, warmup: int
) -> list[list[dict[str, float]]]:
    """Seconds by stage of each run of each detector, which take turns."""
    runs: list[list[dict[str, float]]] = [[] for _ in detectors]
    total = (warmup + repeats) * len(detectors)
    with progress_bar("runs", total) as advance:
        for index in range(warmup + repeats):
            for own, detector in zip(runs, detectors, strict=True):
                start = time.perf_counter()
                timings = detector.detect(picture).timings
                seconds = time.perf_counter() - start
                if index >= warmup:
                    stages = {k: v for k, v in timings.items() if k != "total"}
                    own.append({**stages, "end to end": seconds})
            advance((index + 1) * len(detectors))
    return runs


def summarise(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Median and 95th percentile, seconds, of each stage, and pictures per second.

    >>> summarise([{"end to end": 1.0}, {"end to end": 3.0}, {"end to end": 2.0}])
    {'stages': {'end to end': {'median': 2.0, 'p95': 2.9}}, 'images_per_second': 0.5}
    """
    stages = {}
    for stage in runs[0]:
        values = [run[stage] for run in runs]
        stages[stage] = {
            "median": statistics.median(values),
            "p95": round(_percentile(values, 0.95), 9),
        }
    seconds = [run["end to end"] for run in runs]
    return {"stages": stages, "images_per_second": len(seconds) / sum(seconds)}


def _percentile(values: list[float], share: float) -> float:
    """Linear interpolation between the ordered values."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def _peak_memory(detector: Detector) -> dict[str, int]:
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if detector.device.type == "cuda":
        import torch

        peak["cuda"] = torch.cuda.max_memory_reserved(detector.device)
    return peak


def _print(result: dict[str, Any]) -> None:
    out = Console(highlight=False)
    out.print(f"{result['image']} on {result['device']}, {result['repeats']} runs")
    for each in result["profiles"]:
        table = Table("stage", "median", "95th percentile", box=None)
        for stage, seconds in each["stages"].items():
            table.add_row(stage, *(f"{seconds[k] * 1e3:.1f} ms" for k in ("median", "p95")))
        out.print(f"\n{each['profile']}: {each['images_per_second']:.2f} images per second")
        out.print(table)
    if "ratio" in result:
        a, b = (each["profile"] for each in result["profiles"])
        out.print(f"\n{a} takes {result['ratio']:.2f} times as long as {b}")
    peaks = ", ".join(f"{k} {v / 2**20:.0f} MiB" for k, v in result["peak_memory_bytes"].items())
    out.print(f"\npeak memory: {peaks}")
