"""`anomaly-detector benchmark`: time, energy and memory of a profile on this machine."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from anomaly_detector_ros.benchmarking.timing import (
    END_TO_END,
    Case,
    measure,
    paired_ratio,
    summarise,
)
from anomaly_detector_ros.cli.common import (
    DeviceOption,
    JsonOption,
    OfflineOption,
    ProfileOption,
    load_detector,
    progress_bar,
    write_atomically,
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
    batch: Annotated[
        int, typer.Option(min=1, help="Measure so many images at once, too, beside one by one.")
    ] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Measured runs.")] = 10,
    warmup: Annotated[int, typer.Option(min=0, help="Runs before, which are not measured.")] = 2,
    random_weights: Annotated[
        bool,
        typer.Option("--random-weights", help="Times alone: weights are made up, not fetched."),
    ] = False,
    profile: ProfileOption = DEFAULT_PROFILE,
    device: DeviceOption = "auto",
    offline: OfflineOption = False,
    as_json: JsonOption = False,
    output: Annotated[
        Path | None, typer.Option(help="File to write the results to, as JSON.")
    ] = None,
) -> None:
    """Measure time per stage and end to end, throughput, energy and memory on this machine.

    Energy only where the processor's or the GPU's counters can be read.

    Example: anomaly-detector benchmark --repeats 20 --batch 4

    Example: anomaly-detector benchmark --compare embedded light --output result.json

    Example: anomaly-detector benchmark --profile realtime --random-weights --device cuda
    """
    from anomaly_detector_ros.imaging.images import read_rgb

    picture = read_rgb(image or _demo_picture())
    profiles = list(compare) if compare else [profile]
    load = _load_random if random_weights else load_detector
    detectors = [load(name, device, offline=offline) for name in profiles]
    cases = [
        Case(name, detector, size)
        for size in sorted({1, batch})
        for name, detector in zip(profiles, detectors, strict=True)
    ]
    result = _measured(cases, picture, repeats, warmup)
    if random_weights:
        result["weights"] = "random"
    if compare:
        result["ratios"] = [
            {"batch": a.batch, **paired_ratio(*([r[END_TO_END] for r in c.runs] for c in (a, b)))}
            for a, b in zip(cases[::2], cases[1::2], strict=True)
        ]
    text = json.dumps(result, indent=2)
    if output:
        write_atomically(output, f"{text}\n".encode())
    if as_json:
        typer.echo(text)
    else:
        _print(result)


def _load_random(profile: str, device: str, *, offline: bool) -> Detector:
    from anomaly_detector_ros.benchmarking.random_weights import write_random
    from anomaly_detector_ros.profiles import load_profile
    from anomaly_detector_ros.weights.registry import Registry

    with tempfile.TemporaryDirectory() as folder:
        file = write_random(load_profile(profile), Path(folder), Registry.default())
        return load_detector(str(file), device, offline=offline)


def _demo_picture() -> Path:
    from anomaly_detector_ros.runtime.resources import share_dir
    from anomaly_detector_ros.sources.folders import find_images

    try:
        return find_images(share_dir("demo") / "images")[0]
    except FileNotFoundError as error:
        raise UserError(f"{error}, or give --image") from error


def _measured(cases: list[Case], picture: np.ndarray, repeats: int, warmup: int) -> dict[str, Any]:
    from anomaly_detector_ros.benchmarking.energy import find_meters
    from anomaly_detector_ros.benchmarking.machine import facts, peak_memory

    device = cases[0].detector.device
    with progress_bar("runs", (warmup + repeats) * len(cases)) as advance:
        measure(
            cases,
            picture,
            repeats=repeats,
            warmup=warmup,
            meters=find_meters(device),
            advance=advance,
        )
    peak = peak_memory(device)  # before the rate is measured, which needs some of its own
    return {
        "machine": facts(device),
        "device": str(device),
        "image": f"{picture.shape[1]}x{picture.shape[0]}",
        "repeats": repeats,
        "profiles": [_summary(case) for case in cases],
        "peak_memory_bytes": peak,
    }


def _summary(case: Case) -> dict[str, Any]:
    from anomaly_detector_ros.benchmarking.rate import synthesis_rate

    found: dict[str, Any] = {"profile": case.profile, "batch": case.batch, **summarise(case.runs)}
    images = case.batch * len(case.runs)
    if case.joules:
        found["joules_per_image"] = {name: used / images for name, used in case.joules.items()}
    size = tuple(case.detector.profile.denoiser["size"])
    seconds = found["stages"]["synthesis"]["median"] * case.batch
    found["synthesis"] = {
        "forward_passes_per_image": case.passes.forward / case.batch,
        "backward_passes_per_image": case.passes.backward / case.batch,
        "rate": synthesis_rate(case.detector.denoiser, size, case.passes, seconds),
    }
    return found


def _print(result: dict[str, Any]) -> None:
    out = Console(highlight=False)
    out.print(", ".join(f"{name} {value}" for name, value in result["machine"].items()))
    out.print(f"{result['image']} on {result['device']}, {result['repeats']} runs")
    for each in result["profiles"]:
        _print_profile(out, each)
    for ratio in result.get("ratios", []):
        a, b = (p["profile"] for p in result["profiles"] if p["batch"] == ratio["batch"])
        out.print(
            f"\nbatch {ratio['batch']}: {a} takes {ratio['median']:.3f} times as long as {b} "
            f"(95% interval {ratio['low']:.3f} to {ratio['high']:.3f})"
        )
    peaks = ", ".join(f"{k} {v / 2**20:.0f} MiB" for k, v in result["peak_memory_bytes"].items())
    out.print(f"\npeak memory: {peaks}")


def _print_profile(out: Console, each: dict[str, Any]) -> None:
    rate = f"{each['images_per_second']:.2f} images per second"
    out.print(f"\n{each['profile']}, batch {each['batch']}: {rate}")
    table = Table("stage, per image", "median", "95th percentile", box=None)
    for stage, seconds in each["stages"].items():
        table.add_row(stage, *(f"{seconds[k] * 1e3:.1f} ms" for k in ("median", "p95")))
    out.print(table)
    for meter, joules in each.get("joules_per_image", {}).items():
        out.print(f"{meter}: {joules:.2f} J an image")
    synthesis = each["synthesis"]
    passes = f"{synthesis['forward_passes_per_image']:g} forward"
    if synthesis["backward_passes_per_image"]:
        passes += f" and {synthesis['backward_passes_per_image']:g} backward"
    out.print(f"denoiser: {passes} passes an image", end="")
    if synthesis["rate"]:
        found = synthesis["rate"]
        out.print(
            f" of {found['flops_per_forward_pass'] / 1e9:.1f} GFLOP, "
            f"{found['flops_per_second'] / 1e9:.1f} GFLOP/s: {found['share_of_peak']:.0%} of "
            f"the rate of a large product in {found['dtype']}",
            end="",
        )
    out.print()
