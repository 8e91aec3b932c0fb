"""What this machine is, and how much memory was used on it."""

from __future__ import annotations

import contextlib
import platform
import re
import resource
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from anomaly_detector_ros.runtime.devices import available_cores


def facts(device: torch.device) -> dict[str, Any]:
    """What times depend on: processor, cores, threads, GPU, versions."""
    found = {
        "cpu": cpu_name(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def cpu_name() -> str:
    """The processor's name; on Arm, which tells none, the board's."""
    for file, pattern in (
        ("/proc/cpuinfo", r"model name\s*:\s*(.+)"),
        ("/proc/device-tree/model", r"([^\0]+)"),
    ):
        try:
            found = re.search(pattern, Path(file).read_text(errors="replace"))
        except OSError:
            continue
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def peak_memory(device: torch.device) -> dict[str, int]:
    """Bytes at most so far: resident in this process and, on CUDA, reserved by torch."""
    peak = {"process": _peak_resident()}
    if device.type == "cuda":
        peak["cuda"] = torch.cuda.max_memory_reserved(device)
    return peak


def _peak_resident() -> int:
    # getrusage would count the process that started this one, too.
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text()):
            return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
