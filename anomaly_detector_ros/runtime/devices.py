"""The device models run on, the precision it is good at, and the memory in use."""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from pathlib import Path

import psutil
import torch

from anomaly_detector_ros.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:N``.

    Also bounds torch's threads by the cores that there are for them; see `limit_threads`.

    Raises:
        UserError: the name is unknown or the device is not there.
    """
    limit_threads()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"unknown device '{name}': choose auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device '{name}' is not there ({torch.cuda.device_count()} CUDA devices found): "
            "choose auto or cpu"
        )
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """A precision by name; ``auto`` is the one that the device's matrix units are made for.

    bfloat16 where they have it, float16 on older GPUs that have only that, else float32.
    """
    if name == "auto":
        if device.type == "cuda":
            return _cuda_dtype(torch.cuda.get_device_capability(device))
        return torch.bfloat16 if _has_bfloat16(cpu_flags()) else torch.float32
    if name not in DTYPES:
        raise UserError(f"unknown dtype '{name}': choose auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _cuda_dtype(capability: tuple[int, int]) -> torch.dtype:
    """Ampere and later have bfloat16; Volta (also Jetson AGX Xavier) and Turing have float16."""
    if capability >= (8, 0):
        return torch.bfloat16
    return torch.float16 if capability >= (7, 0) else torch.float32


def _has_bfloat16(flags: Collection[str]) -> bool:
    """Whether a processor multiplies in bfloat16: AVX-512, AMX, or Arm's extension."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)


def cpu_flags() -> set[str]:
    """The processor's features by the kernel's names; empty where it does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return set()
    flags = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return set(next(flags, "").split())


def memory_bytes(device: torch.device) -> int:
    """Bytes torch holds on a CUDA device; on the CPU the resident size of this process."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return int(psutil.Process().memory_info().rss)


def limit_threads() -> None:
    """Bounds torch's threads by `available_cores`: more would only wait for each other.

    torch itself knows of no container's share of the time. Fewer, as OMP_NUM_THREADS or
    `torch.set_num_threads` may have set, stay.
    """
    if torch.get_num_threads() > available_cores():
        torch.set_num_threads(available_cores())


def available_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """How many CPU cores this process may use, which may be fewer than the computer has.

    Bounded by the process's affinity and by a container's share of the time, rounded up.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every platform
        cores = os.cpu_count() or 1
    return min(cores, _cgroup_cores(cgroup) or cores)


def _cgroup_cores(cgroup: Path) -> int | None:
    """Cores' worth of time that a container is given; None where it is not bounded."""
    try:
        if (cgroup / "cpu.max").is_file():  # version 2: "QUOTA PERIOD", QUOTA may be "max"
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:  # version 1, where -1 is no bound
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text()
        share = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return math.ceil(share) if share > 0 else None
