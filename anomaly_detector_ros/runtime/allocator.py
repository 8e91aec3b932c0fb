"""The C library's allocator, set to keep freed memory, which speeds up torch on the CPU."""

from __future__ import annotations

import ctypes
import platform

# Parameters of mallopt(), from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_LARGEST = 2**31 - 1  # mallopt takes an int
_OLD_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # older glibc refuses more
_TOP_PAD = 64 * 2**20


def tune() -> bool:
    """Make glibc keep freed memory for reuse; True if it took every setting.

    glibc returns every large block to the system when it is freed, and the next tensor pays for it
    again in page faults. The environment variables MALLOC_MMAP_THRESHOLD_ and
    MALLOC_TRIM_THRESHOLD_ do the same, but have to be there before the process starts. One arena
    only: those of further threads cannot hold blocks over 64 MiB.

    To be called before anything large is allocated. Does nothing where the C library is another.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    took = bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST))
    if not took:
        took = bool(mallopt(_M_MMAP_THRESHOLD, _OLD_LARGEST_MMAP_THRESHOLD))
    settings = ((_M_TRIM_THRESHOLD, _LARGEST), (_M_TOP_PAD, _TOP_PAD), (_M_ARENA_MAX, 1))
    taken = [mallopt(name, value) for name, value in settings]
    return all(taken) and took
