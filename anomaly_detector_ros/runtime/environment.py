"""Environment variables of processes that send or receive camera images; no rclpy, no launch."""

from __future__ import annotations

import os
import shutil

from anomaly_detector_ros.runtime.resources import share_dir

# glibc returns large blocks to the system by default and pays for each image in page faults.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_ARENA_MAX": "1",
}
FASTDDS = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
"""Where Fast DDS 2 (Humble, Jazzy) and Fast DDS 3 look for their profile."""
SEGMENT = 64 * 2**20
"""Bytes of shared memory for each process, as in config/fastdds.xml."""


def fastdds_profile() -> str:
    """Path of the Fast DDS profile: the one in force for the system, else the package's."""
    set_already = (os.environ[name] for name in FASTDDS if os.environ.get(name))
    return next(set_already, str(share_dir("config") / "fastdds.xml"))


def shared_memory_suffices(processes: int = 4) -> bool:
    """Whether the processes' segments fit into /dev/shm; containers often have 64 MB in all.

    Fast DDS does better there with its default segments.
    """
    try:
        return shutil.disk_usage("/dev/shm").free >= processes * SEGMENT
    except OSError:
        return False


def fastdds_environment(profile: str) -> dict[str, str]:
    """The variables that give Fast DDS a profile; none without one or without room for it."""
    return dict.fromkeys(FASTDDS, profile) if profile and shared_memory_suffices() else {}
