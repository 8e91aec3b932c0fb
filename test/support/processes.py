"""Processes that tests start."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any


def start_python(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """``python ARGUMENTS``, as text; `options` are those of `subprocess.Popen`.

    It hears SIGINT even where the tests themselves were started with SIGINT ignored, as a shell
    starts a job in the background; children inherit that.
    """
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, text=True, preexec_fn=_hear_interrupts, **options)


def _hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
