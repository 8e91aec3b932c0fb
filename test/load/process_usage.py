"""CPU time of a process by thread, and its memory, from /proc."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

DETECTOR_THREAD = "detector"


def thread_seconds(pid: int) -> dict[int, tuple[str, float]]:
    """Name and CPU seconds of each thread, by thread id."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            nanoseconds = int((task / "schedstat").read_text().split()[0])
            found[int(task.name)] = ((task / "comm").read_text().strip(), nanoseconds * 1e-9)
        except FileNotFoundError:  # ended meanwhile
            continue
    return found


def used_between(
    before: dict[int, tuple[str, float]], after: dict[int, tuple[str, float]]
) -> tuple[float, float]:
    """CPU seconds of the detector's thread and of all others.

    The detector's thread is known by its name where Python tells the system (3.14 and later); else
    it is the busiest.
    """
    used = {tid: after[tid][1] - before.get(tid, ("", 0.0))[1] for tid in after}
    named = [tid for tid in used if after[tid][0] == DETECTOR_THREAD]
    detector = sum(used[tid] for tid in named) if named else max(used.values())
    return detector, sum(used.values()) - detector


def resident_bytes(pid: int) -> tuple[int, int]:
    """Resident memory of the process's own, and that shared with others (the transport's)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    sizes = dict(line.split(":", 1) for line in lines)
    own, shared = (int(sizes[key].split()[0]) * 1024 for key in ("RssAnon", "RssShmem"))
    return own, shared


def leak(samples: Sequence[float], seconds: float) -> float:
    """Growth that never ends, in the samples' unit a second; at least 0.

    The samples are parted into quarters, and what counts is the smallest growth from the median of
    one to that of the next. What leaks grows in each of them. A heap that takes another piece from
    the system once, or that settles, does not.

    Args:
        samples: evenly spaced.
        seconds: from the first to the last.
    """
    parts = 4
    length = max(1, len(samples) // parts)
    medians = [median(samples[i * length : (i + 1) * length]) for i in range(parts)]
    return max(0.0, min(b - a for a, b in pairwise(medians)) / (seconds / parts))
