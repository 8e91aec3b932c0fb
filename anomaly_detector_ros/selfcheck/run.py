"""The whole selfcheck, in the order of a bug report."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from anomaly_detector_ros.building import Parts
from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.runtime.devices import limit_threads
from anomaly_detector_ros.runtime.memory_ladder import is_out_of_memory
from anomaly_detector_ros.selfcheck import environment, measures
from anomaly_detector_ros.selfcheck.finding import Finding
from anomaly_detector_ros.selfcheck.reference import check, stored

QUICK_PROFILES = ("light",)


def selfcheck(*, gpu: bool, quick: bool) -> Iterator[Finding]:
    """Looks at everything, and never stops at what it finds.

    Args:
        gpu: a GPU is expected: that there is none is an error, and its tests run too.
        quick: within a minute: one profile, one image at a time, one camera.
    """
    limit_threads()
    yield from environment.machine()
    yield from environment.gpu(gpu)
    yield from environment.ros()
    yield from environment.weights(quick)
    section = "Accuracy on the CPU, against stored results"
    remedy = "attach this report to an issue: this machine or its libraries compute something else"
    results, wanted = {}, {}
    try:
        wanted = stored()
    except UserError as error:
        yield Finding(section, "stored results", str(error), "error", "reinstall the package")
    cpu = Parts(torch.device("cpu"), offline=True)
    for finding, result in check(section, cpu, wanted, lambda part: part.tolerance, remedy):
        yield finding
        if result is not None:
            results[finding.name] = result
    if torch.cuda.is_available():
        there = Parts(torch.device("cuda"), offline=True)
        section = "Accuracy on the GPU, against the CPU"
        remedy = "set `device: cpu` until it is mended, and attach this report to an issue"
        for finding, _ in check(section, there, results, lambda p: p.gpu_tolerance, remedy):
            yield finding
        if gpu:
            yield from measures.cuda_tests()
        yield from _speed(torch.device("cuda"), quick)
    # Where there is a GPU, the CPU is measured for comparison alone.
    yield from _speed(torch.device("cpu"), quick or torch.cuda.is_available())
    yield from measures.transport(quick)


def _speed(device: torch.device, quick: bool) -> Iterator[Finding]:
    for profile in environment.runnable_profiles():
        if not quick or profile in QUICK_PROFILES:
            try:
                yield from measures.speed(profile, device, quick)
            except Exception as error:  # what is wrong here is what was asked
                told = f"{type(error).__name__}: {one_line(error, 200)}"
                remedy = (
                    "end what else uses the memory, or take smaller batches"
                    if is_out_of_memory(error)
                    else "attach this report to an issue"
                )
                yield Finding(f"Speed on {device}", profile, told, "error", remedy)
