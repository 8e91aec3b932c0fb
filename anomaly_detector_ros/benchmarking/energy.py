"""Energy counters, where this machine has them and lets them be read."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

POWERCAP = Path("/sys/class/powercap")


class Meter(Protocol):
    """A counter of energy."""

    def joules(self) -> float:
        """Energy used since some fixed moment."""
        ...


class RaplMeter:
    """The processor packages' counters (RAPL), as Linux shows them for Intel's and AMD's.

    Everything that runs on the processor counts, not this process alone.

    Args:
        zones: directories with ``energy_uj`` and ``max_energy_range_uj``, both in microjoules.
            Counters start again from 0 at the latter, after some minutes at full load.
    """

    def __init__(self, zones: Sequence[Path]) -> None:
        self._zones = list(zones)
        self._ranges = [_number(zone / "max_energy_range_uj") for zone in zones]
        self._last = self._read()
        self._used = 0

    def _read(self) -> list[int]:
        return [_number(zone / "energy_uj") for zone in self._zones]

    def joules(self) -> float:
        """Energy since the meter was made; to be asked more often than counters start again."""
        now = self._read()
        for new, last, length in zip(now, self._last, self._ranges, strict=True):
            self._used += new - last if new >= last else new - last + length
        self._last = now
        return self._used / 1e6


class NvmlMeter:
    """The counter of an NVIDIA GPU (Volta or later), through the package pynvml."""

    def __init__(self, device: torch.device) -> None:
        import pynvml
        import torch

        pynvml.nvmlInit()
        # Not by number: CUDA_VISIBLE_DEVICES hides GPUs from torch, not from NVML.
        uuid = torch.cuda.get_device_properties(device).uuid
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        self._read = pynvml.nvmlDeviceGetTotalEnergyConsumption
        self.joules()

    def joules(self) -> float:
        """Energy since the driver was loaded."""
        millijoules: int = self._read(self._handle)
        return millijoules / 1e3


def find_meters(device: torch.device, powercap: Path = POWERCAP) -> dict[str, Meter]:
    """The meters that can be read: ``cpu package``, and ``gpu`` for a CUDA device."""
    meters: dict[str, Meter] = {}
    # Packages only: their parts (intel-rapl:0:0) are in them, and they in the platform (psys).
    # Since 2020 Linux lets root alone read them.
    with contextlib.suppress(OSError, ValueError):
        zones = [
            zone
            for zone in sorted(powercap.glob("intel-rapl:*"))
            if (zone / "name").read_text().startswith("package")
        ]
        if zones:
            meters["cpu package"] = RaplMeter(zones)
    if device.type == "cuda":
        # No pynvml, an older torch or GPU, a driver that refuses: all the same.
        with contextlib.suppress(Exception):
            meters["gpu"] = NvmlMeter(device)
    return meters


def _number(file: Path) -> int:
    return int(file.read_text())
