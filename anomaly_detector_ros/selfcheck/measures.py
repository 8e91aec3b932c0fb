"""How fast this machine is: detectors, a stream of frames, and images through the middleware."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from anomaly_detector_ros.benchmarking.cost import Machine, stage_costs
from anomaly_detector_ros.benchmarking.machine import peak_memory
from anomaly_detector_ros.benchmarking.timing import END_TO_END, Case, measure, summarise
from anomaly_detector_ros.demo.processes import graph_environment
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.runtime.devices import choose_dtype, memory_bytes
from anomaly_detector_ros.selfcheck.finding import Finding
from anomaly_detector_ros.selfcheck.reference import scene

FRAME = (272, 512)
BATCHES = (1, 4, 16)
SLOW = 1.0
"""Seconds a frame from which there is advice."""
BUDGET = 60.0
"""Seconds that the runs of a batch may take."""
QUICK_BUDGET = 10.0
TESTS = ("test_compiled.py", "test_devices.py", "test_node_models.py")


def speed(profile: str, device: torch.device, quick: bool) -> Iterator[Finding]:
    """Time a frame of one profile at several batch sizes, and of a stream of frames."""
    section = f"Speed on {device}"
    picture = scene(*FRAME)
    try:
        begun = time.perf_counter()
        detector = Detector.from_profile(profile, device=str(device), offline=True)
    except UserError as error:
        remedy = "see the line, or leave this profile"
        yield Finding(section, profile, one_line(error, 200), "skipped", remedy)
        return
    loaded, first, usual = (time.perf_counter() - begun, *(_seconds(detector) for _ in range(2)))
    name = f"{profile}: loading, first and second frame"
    yield Finding(section, name, f"{loaded:.1f} s, {first:.2f} s, {usual:.2f} s")
    for batch in BATCHES[:1] if quick else BATCHES:
        warmup = int(batch > 1)  # single frames have run already
        repeats = int((QUICK_BUDGET if quick else BUDGET) / (usual * batch)) - warmup
        repeats = min(3 if quick else 10, repeats)
        if repeats < 1 and batch > 1:
            told = f"left out: two runs would take {2 * usual * batch:.0f} s"
            remedy = f"run `anomaly-detector benchmark --profile {profile} --batch {batch}`"
            yield Finding(section, f"{profile}, batch {batch}", told, "skipped", remedy)
            continue
        case = Case(profile, detector, batch)
        runs = {"repeats": max(1, repeats), "warmup": warmup}
        measure([case], picture, **runs, meters={}, advance=lambda done: None)
        found = summarise(case.runs)["stages"]
        whole = found.pop(END_TO_END)
        stages = ", ".join(f"{k} {v['median'] * 1e3:.0f}" for k, v in found.items())
        told = f"{whole['median']:.3f} s a frame (95%: {whole['p95']:.3f}); ms: {stages}"
        name = f"{profile}, batch {batch}"
        if batch == 1 and whole["median"] > SLOW and device.type == "cpu":
            remedy = "if that is too slow, take fewer edits, a lighter profile (`light`) or a GPU"
            yield Finding(section, name, told, "advice", remedy)
        else:
            yield Finding(section, name, told)
        if batch == 1:
            seconds = {stage: each["median"] for stage, each in found.items()}
            yield _prediction(section, profile, detector, seconds)
    yield _stream(section, profile, detector, 3.0 if quick else 20.0)
    peak = ", ".join(f"{k} {v / 2**20:.0f} MiB" for k, v in peak_memory(device).items())
    yield Finding(section, f"{profile}: peak memory so far", peak)


def _seconds(detector: Detector) -> float:
    begun = time.perf_counter()
    detector.detect(scene(*FRAME))
    return time.perf_counter() - begun


def _prediction(
    section: str, profile: str, detector: Detector, seconds: Mapping[str, float]
) -> Finding:
    """What the cost model says of a single frame, beside what its stages took."""
    dtype = choose_dtype("auto", detector.device)
    machine = Machine.measured(detector.device, dtype)
    told = [
        f"{stage} {machine.seconds(operations) * 1e3:.0f} ms predicted, "
        f"{seconds[stage] * 1e3:.0f} measured ({sum(o.flops for o in operations) / 1e9:.0f} GFLOP)"
        for stage, operations in stage_costs(detector, scene(*FRAME)).items()
        if operations
    ]
    rates = (
        f"{machine.flops_per_second / 1e9:.0f} GFLOP/s in {str(dtype).removeprefix('torch.')}, "
        f"{machine.bytes_per_second / 1e9:.0f} GB/s, {machine.seconds_per_call * 1e6:.0f} µs a call"
    )
    return Finding(section, f"{profile}: cost model", f"{'; '.join(told)}; of {rates}")


def _stream(section: str, profile: str, detector: Detector, seconds: float) -> Finding:
    """Frames that move, one after the other, as a camera sends them."""
    picture = scene(*FRAME)
    before, computed = memory_bytes(detector.device), time.process_time()
    begun = time.perf_counter()
    times: list[float] = []
    while (start := time.perf_counter()) < begun + seconds:
        detector.detect(np.roll(picture, 4 * len(times), axis=1))
        times.append(time.perf_counter() - start)
    computed = (time.process_time() - computed) / len(times)
    grown = (memory_bytes(detector.device) - before) / 2**20
    told = (
        f"{len(times) / sum(times):.2f} frames a second over {sum(times):.0f} s, 95% within "
        f"{np.percentile(times, 95):.2f} s; {computed:.2f} s of CPU time a frame; memory "
        f"{grown:+.0f} MiB"
    )
    return Finding(section, f"{profile}: stream", told)


def transport(quick: bool) -> Iterator[Finding]:
    """Images of 720p at 30 Hz through rclpy, of one camera and of several at once."""
    section = "Transport"
    if find_spec("rclpy") is None:
        remedy = "source ROS's setup.bash, or pip install 'anomaly_detector_ros[ros]'"
        yield Finding(section, "720p at 30 Hz", "no rclpy", "skipped", remedy)
        return
    for cameras in (1,) if quick else (1, 2, 4):
        name = f"720p at 30 Hz, {cameras} camera{'s' * (cameras > 1)}"
        seconds = 3.0 if quick else 10.0
        with tempfile.TemporaryDirectory(prefix="selfcheck_") as folder:
            arguments = ["--cameras", str(cameras), "--seconds", str(seconds)]
            ran = _ran(
                [sys.executable, "-m", "anomaly_detector_ros.demo.loop", *arguments],
                graph_environment(Path(folder)),
            )
        try:
            found = json.loads(ran.splitlines()[-1])
            received, sent = int(found["received"]), int(found["sent"])
        except (ValueError, LookupError):
            remedy = "see what rclpy says; run the demo: `anomaly-detector demo`"
            told = one_line(ran or "it wrote nothing", 200)
            yield Finding(section, name, told, "error", remedy)
            continue
        told = f"{received} of {sent} images came"
        if latency := found["latency"]:
            told += f", {latency['median'] * 1e3:.1f} ms old (95%: {latency['p95'] * 1e3:.1f})"
        if received >= 0.95 * sent > 0:
            yield Finding(section, name, told)
            continue
        remedy = (
            "images are lost in the middleware or on busy cores: look at Fast DDS's profile and "
            "/dev/shm above, send smaller or compressed images (image_transport:=compressed)"
        )
        yield Finding(section, name, told, "advice", remedy)


def cuda_tests() -> Iterator[Finding]:
    """The tests that need a GPU, where the tests are there."""
    section = "CUDA tests"
    root = Path(__file__).resolve().parents[2]
    files = [str(root / "test" / "unit" / name) for name in TESTS]
    if not all(Path(file).is_file() for file in files) or find_spec("pytest") is None:
        remedy = "run it from a source checkout with pip install '.[test]'"
        yield Finding(section, ", ".join(TESTS), "not here", "skipped", remedy)
        return
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    told = _ran([*pytest, *files], None, root)
    last = told.strip().splitlines()[-1] if told.strip() else "nothing"
    if re.search(r"\d+ passed", last) and not re.search(r"failed|error", last):
        yield Finding(section, ", ".join(TESTS), last)
    else:
        failed = [line for line in told.splitlines() if line.startswith(("FAILED", "ERROR"))]
        value = one_line("; ".join([last, *failed]), 600)
        remedy = "attach the output of `pytest test/unit/test_compiled.py` to an issue"
        yield Finding(section, ", ".join(TESTS), value, "error", remedy)


def _ran(command: list[str], environment: dict[str, str] | None, folder: Path | None = None) -> str:
    """What a command wrote; it gets ten minutes."""
    try:
        done = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600
        )
    except subprocess.TimeoutExpired:
        return "it took over ten minutes"
    return done.stdout if done.returncode == 0 else f"{done.stdout}{done.stderr}"
