"""The allocator's settings, seen from outside: page faults of repeated large allocations."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# 48 MB blocks, written and freed again and again, in the main thread and in another.
FAULTS = """
import ctypes, resource, sys, threading
from anomaly_detector_ros.runtime.allocator import tune
if sys.argv[1] == "tuned":
    assert tune()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def use():
    block = libc.malloc(ctypes.c_size_t(48_000_000))
    ctypes.memset(block, 1, 48_000_000)
    libc.free(ctypes.c_void_p(block))
def faults():
    use()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        use()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
faults()
thread = threading.Thread(target=faults)
thread.start()
thread.join()
"""


def faults(mode: str) -> list[int]:
    command = [sys.executable, "-c", FAULTS, mode]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": "/tmp"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return [int(line) for line in done.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_freed_memory_is_kept() -> None:
    plain, tuned = faults("plain"), faults("tuned")
    assert min(plain) > 1000  # each block is paid for again
    assert max(tuned) < 100
