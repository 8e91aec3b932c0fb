"""What a fault is, how one is run, and the table of what became of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anomaly_detector_ros.errors import one_line

if TYPE_CHECKING:
    from bench import Bench

Act = Callable[["Bench"], str]
Recover = Callable[["Bench"], None]


class UnexpectedError(Exception):
    """Something else happened than what the fault's line promises."""


class SkipError(Exception):
    """The fault cannot be injected here; the text says why."""


def expect(condition: object, otherwise: str) -> None:
    """Raises UnexpectedError with the text unless the condition holds."""
    if not condition:
        raise UnexpectedError(otherwise)


@dataclass(frozen=True)
class Fault:
    """One line of the script.

    Attributes:
        group: messages, graph, parameters, services, signals, resources or commands.
        name: short and without spaces, for ``--only``.
        injected: what is done to the node or command.
        expected: what it should do.
        act: injects and checks; returns what happened, raises UnexpectedError.
        recover: what shows that the fault is over; None: a good frame goes through the same
            process of the node, and its counters add up.
        needs_node: whether an active node must run before.
    """

    group: str
    name: str
    injected: str
    expected: str
    act: Act
    recover: Recover | None = None
    needs_node: bool = True


@dataclass(frozen=True)
class Result:
    """What became of one fault; ``recover_s`` is the time from the fault's end to recovery."""

    group: str
    name: str
    injected: str
    expected: str
    happened: str
    as_expected: bool
    recovered: bool
    recover_s: float | None
    skipped: bool = False


def run(fault: Fault, bench: Bench) -> Result:
    """Injects one fault, sees what happens and whether all is well afterwards."""
    as_expected, recovered, seconds = True, False, None
    try:
        if fault.needs_node:
            bench.live()
        happened = fault.act(bench)
    except SkipError as reason:
        happened, as_expected = str(reason), False
        return _result(fault, happened, as_expected, False, None, skipped=True)
    except Exception as error:
        happened, as_expected = f"{type(error).__name__}: {one_line(error)}", False
    healed = time.monotonic()
    try:
        (fault.recover or type(bench).good_frame)(bench)
        seconds = time.monotonic() - healed
        if bench.node is not None:
            bench.check_counters()
        recovered = True
    except Exception as error:
        happened += f"; not recovered: {one_line(error)}"
        bench.stop_node()  # the next fault shall not inherit this one
    return _result(fault, happened, as_expected, recovered, seconds)


def _result(
    fault: Fault,
    happened: str,
    as_expected: bool,
    recovered: bool,
    seconds: float | None,
    skipped: bool = False,
) -> Result:
    return Result(
        fault.group, fault.name, fault.injected, fault.expected, happened, as_expected, recovered,
        None if seconds is None else round(seconds, 2), skipped,
    )  # fmt: skip


def markdown(results: Sequence[Result]) -> str:
    """The results as a Markdown table with a line that counts them."""
    lines = [
        "| # | group | injected | expected | what happened | as expected | recovered in |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for number, each in enumerate(results, 1):
        verdict = "skipped" if each.skipped else "yes" if each.as_expected else "**no**"
        time_taken = f"{each.recover_s:.1f} s" if each.recover_s is not None else "-"
        if not each.recovered and not each.skipped:
            time_taken = "**not**"
        cells = (each.group, each.injected, each.expected, each.happened, verdict, time_taken)
        lines.append(f"| {number} | " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    injected = [each for each in results if not each.skipped]
    lines += [
        "",
        f"{len(injected)} faults injected, {sum(r.as_expected for r in injected)} as expected, "
        f"{sum(r.recovered for r in injected)} recovered; {len(results) - len(injected)} skipped.",
    ]
    return "\n".join(lines) + "\n"
