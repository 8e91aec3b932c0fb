"""What to do without when a device runs out of memory, and when to try again with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

RESTORE_AFTER = 60.0
"""Seconds on a lower level before the next higher one is tried again."""
MAX_RESTORE_AFTER = 3600.0
"""The same after repeated failures: each doubles the time, up to this."""

_MESSAGES = ("out of memory", "can't allocate memory", "failed to allocate", "alloc_failed")


class Level(NamedTuple):
    """How a detector does with less memory than its profile asks for.

    Attributes:
        title: what differs from the profile, for the diagnostics.
        one_by_one: edits and images go through the networks one at a time: the same results.
        fewer_prompts: a quarter of the segmenter's prompts: coarser segments.
        on_cpu: everything runs on the CPU: the same results, slower.
    """

    title: str = ""
    one_by_one: bool = False
    fewer_prompts: bool = False
    on_cpu: bool = False


def levels(device: torch.device) -> list[Level]:
    """The levels for a device, the profile's own first, each needing less memory than the last."""
    found = [
        Level(),
        Level("edits one by one", one_by_one=True),
        Level("edits one by one, a quarter of the prompts", one_by_one=True, fewer_prompts=True),
    ]
    return found if device.type == "cpu" else [*found, Level("on the CPU", on_cpu=True)]


class Ladder:
    """Which level is in use. A step down is made at once; up again one at a time, after a while.

    Args:
        depth: the number of levels.
        clock: monotonic seconds.
    """

    def __init__(self, depth: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.level = 0
        self._depth, self._clock = depth, clock
        self._patience = RESTORE_AFTER
        self._changed = clock()
        self._trying = False

    def down(self) -> bool:
        """Memory ran out; False if there is no lower level."""
        if self.level + 1 >= self._depth:
            return False
        if self._trying:  # the last step up came too early
            self._patience = min(2 * self._patience, MAX_RESTORE_AFTER)
        self._trying = False
        self.level += 1
        self._changed = self._clock()
        return True

    def up(self) -> bool:
        """Makes a step up if it is time to; False if it is not."""
        waited = self._clock() - self._changed
        if self._trying and waited >= self._patience:  # the last step up has proved itself
            self._trying, self._patience = False, RESTORE_AFTER
        if self.level == 0 or waited < self._patience:
            return False
        self.level -= 1
        self._changed = self._clock()
        self._trying = True
        return True


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one it was raised from, says that memory is exhausted."""
    while error is not None:
        if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
            return True
        # The CPU's allocator and ONNX Runtime have no error type of their own for it.
        if isinstance(error, RuntimeError) or "onnxruntime" in type(error).__module__:
            text = str(error).lower()
            if any(message in text for message in _MESSAGES):
                return True
        error = error.__cause__ or error.__context__
    return False
