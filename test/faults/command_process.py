"""The command line as a real process, and how it ends."""

from __future__ import annotations

import functools
import resource
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fault import UnexpectedError, expect

if TYPE_CHECKING:
    from bench import Bench

COMMAND = [sys.executable, "-m", "anomaly_detector_ros"]
ONE_LINE = "exit code 1 and one line"


def command(
    bench: Bench, *words: str, prefix: Sequence[str] = (), limit: int | None = None, **more: Any
) -> subprocess.Popen[str]:
    """Starts a command; ``limit`` is the largest file it may write, in bytes."""
    before = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
    return subprocess.Popen(
        [*prefix, *COMMAND, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, preexec_fn=None if limit is None else before,
        **{"env": bench.environment, "cwd": bench.folder, **more},
    )  # fmt: skip


def ended(process: subprocess.Popen[str], timeout: float = 240.0) -> tuple[int, str]:
    """Exit code and last line."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise UnexpectedError(f"still runs after {timeout:g} s") from None
    expect("Traceback" not in output, f"a traceback: {output.strip().splitlines()[-1:]}")
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return process.returncode, lines[-1] if lines else ""


def refused(bench: Bench, process: subprocess.Popen[str], *words: str) -> str:
    """The command ends with code 1 and a last line that holds the words."""
    code, line = ended(process)
    expect(code == 1, f"exit code {code}: {line}")
    for word in words:
        expect(word in line, f"'{line}' without '{word}'")
    return f'exit code 1: "{line.replace(str(bench.folder), "...")[:160]}"'
