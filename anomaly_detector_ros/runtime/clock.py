"""How long the stages of a detection take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StageClock:
    """Seconds by stage of one image, with the device's queue drained at both ends."""

    def __init__(self, device: torch.device, **seconds: float) -> None:
        self.device = device
        self.seconds = seconds

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Adds how long the block takes."""
        start = self._now()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + self._now() - start

    def timings(self) -> dict[str, float]:
        """Seconds by stage and ``total``."""
        return {**self.seconds, "total": sum(self.seconds.values())}
