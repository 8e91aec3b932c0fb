"""CPU time of a process by thread, and its memory, from /proc."""

from __future__ import annotations

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


def resident_bytes(pid: int) -> int:
    """Resident memory, shared memory of the transport included."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)


def growth(samples: list[int]) -> float:
    """Relative growth from the first fifth of the samples to the last, by their medians."""
    fifth = max(1, len(samples) // 5)
    first, last = median(samples[:fifth]), median(samples[-fifth:])
    return last / first - 1.0
