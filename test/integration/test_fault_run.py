"""The scripted fault run and the load run's sums; a few faults against a real node."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")

sys.path.extend(str(Path(__file__).resolve().parents[1] / each) for each in ("faults", "load"))

from fault import Fault, SkipError, UnexpectedError, markdown, run
from process_usage import leak, used_between

TESTS = Path(__file__).resolve().parents[1]
FEW = ("wrong_encoding", "short_data", "future_stamps", "out_of_range", "bad_transitions")


@pytest.mark.slow
def test_a_few_faults_in_a_running_node(tmp_path: Path):
    file = tmp_path / "results.json"
    ended = subprocess.run(
        [sys.executable, str(TESTS / "faults"), "--only", ",".join(FEW), "--json", str(file)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    results = json.loads(file.read_text())
    assert {each["name"] for each in results} == set(FEW)
    assert all(each["as_expected"] and each["recovered"] for each in results)
    assert ended.stdout.count("| yes |") == len(FEW)


def fault(act: Any, recover: Any = lambda bench: None) -> Fault:
    return Fault("group", "name", "injected", "expected", act, recover, needs_node=False)


def raising(error: Exception) -> Any:
    def act(bench: Any) -> str:
        raise error

    return act


@pytest.mark.parametrize(
    ("given", "verdicts", "words"),
    [
        (fault(lambda bench: "fine"), (True, True, False), "fine"),
        (fault(raising(UnexpectedError("other"))), (False, True, False), "other"),
        (fault(lambda b: "fine", raising(ValueError("dead"))), (True, False, False), "dead"),
        (fault(raising(SkipError("no disk"))), (False, False, True), "no disk"),
    ],
)
def test_verdicts(given: Fault, verdicts: tuple[bool, ...], words: str):
    bench = SimpleNamespace(node=None, stop_node=lambda: None)
    result = run(given, bench)
    assert (result.as_expected, result.recovered, result.skipped) == verdicts
    assert words in result.happened
    assert words in markdown([result])


def test_counters_that_do_not_add_up_are_no_recovery():
    bench = SimpleNamespace(
        node=object(), stop_node=lambda: None, check_counters=lambda: raising(UnexpectedError())(0)
    )
    assert not run(fault(lambda bench: "fine"), bench).recovered


def test_load_sums():
    before = {1: ("python", 1.0), 2: ("python", 5.0)}
    after = {1: ("python", 1.5), 2: ("python", 9.0), 3: ("python", 0.25)}
    assert used_between(before, after) == (4.0, 0.75)
    named = {**after, 3: ("detector", 0.25)}
    assert used_between(before, named) == (0.25, 4.5)


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (lambda t: 100.0, 0.0),
        (lambda t: 100.0 + 15.0 * (t > 60), 0.0),  # the heap took another piece
        (lambda t: 100.0 - 50.0 * 0.9**t, 0.0),  # settles
        (lambda t: 100.0 + 0.01 * t + 15.0 * (t > 60), 0.01),
        (lambda t: 100.0 - 0.5 * t, 0.0),
    ],
)
def test_only_what_grows_all_the_time_is_a_leak(memory: Callable[[int], float], expected: float):
    samples = [memory(t) for t in range(121)]
    assert leak(samples, 120.0) == pytest.approx(expected, abs=5e-3)
