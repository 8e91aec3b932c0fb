"""Runs fuzz cases in processes of their own, so that a crash or a hang costs one case.

A case is a function of a number. It returns True where the input was accepted and raises UserError
where it was refused; anything else that it raises, a crash and a hang are findings.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.weights.landing import SourceError

Case = Callable[[int], bool]

REFUSALS = (UserError, SourceError)
MAX_MESSAGE = 400
"""Longer error messages are findings: they are one line for a log."""


@dataclass
class Findings:
    """What came of a run.

    Attributes:
        counts: cases by outcome: accepted, refused, failed, crashed, hung.
        failures: number of the case and what happened, for the last three.
    """

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)

    def summary(self, what: str, seed: int) -> str:
        """One line."""
        kinds = ("accepted", "refused", "failed", "crashed", "hung")
        text = ", ".join(f"{self.counts[kind]} {kind}" for kind in kinds)
        return f"{what}: {sum(self.counts.values())} cases with seed {seed}: {text}"


def run_cases(
    case: Case, numbers: Sequence[int], *, limit_s: float = 20.0, memory: int = 0
) -> Findings:
    """Run the cases in order in a forked process, a new one after a crash or a hang.

    Args:
        case: one case.
        numbers: of the cases.
        limit_s: a case that takes longer hangs.
        memory: bytes that a case may add to the process's address space; 0 for no limit.
    """
    findings = Findings()
    rest = list(numbers)
    context = multiprocessing.get_context("fork")
    while rest:
        ours, theirs = context.Pipe()
        worker = context.Process(target=_work, args=(theirs, case, rest, memory), daemon=True)
        worker.start()
        theirs.close()
        rest = _follow(ours, worker, rest, limit_s, findings)
        ours.close()
    return findings


def main(what: str, make: Callable[[int], Case], default_count: int, memory: int = 0) -> int:
    """The command line of a fuzz run; its exit code."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--count", type=int, default=default_count, help="number of cases")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same cases")
    parser.add_argument("--only", type=int, help="run this case alone, in this process")
    options = parser.parse_args()
    case = make(options.seed)
    if options.only is not None:
        print("accepted" if case(options.only) else "nothing came of it")
        return 0
    findings = run_cases(case, range(options.count), memory=memory)
    for number, text in findings.failures[:20]:
        print(f"case {number}: {text}")
    print(findings.summary(what, options.seed))
    return 1 if findings.failures else 0


def _work(pipe: Connection, case: Case, numbers: Sequence[int], memory: int) -> None:
    # Image libraries complain of what they are given.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    if memory:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    for number in numbers:
        try:
            outcome = ("accepted", "") if case(number) else ("failed", "returned nothing")
        except REFUSALS as error:
            text = str(error)
            plain = text and "\n" not in text and len(text) <= MAX_MESSAGE
            outcome = ("refused", "") if plain else ("failed", f"message is no line: {text!r}")
        except BaseException:
            outcome = ("failed", traceback.format_exc(limit=-6))
        pipe.send((number, *outcome))


def _follow(
    pipe: Connection,
    worker: multiprocessing.process.BaseProcess,
    numbers: list[int],
    limit_s: float,
    findings: Findings,
) -> list[int]:
    """Note what comes of the cases; those that are left when the process ends or hangs."""
    for position, number in enumerate(numbers):
        try:
            if pipe.poll(limit_s):
                _, kind, text = pipe.recv()
            else:
                kind, text = "hung", f"longer than {limit_s} s"
        except (EOFError, ConnectionResetError):
            worker.join(10)
            kind, text = "crashed", f"exit code {worker.exitcode}"
        findings.counts[kind] += 1
        if kind not in ("accepted", "refused"):
            findings.failures.append((number, text))
        if kind in ("hung", "crashed"):
            worker.kill()
            worker.join()
            return numbers[position + 1 :]
    worker.join()
    return []
