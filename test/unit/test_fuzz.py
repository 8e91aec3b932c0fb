"""A few hundred of the fuzz cases of test/fuzz, and whether its harness notices what goes wrong."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fuzz"))

import fuzz_files
import fuzz_messages
from harness import Findings, run_cases
from mutations import mutate
from subjects import SUBJECTS

from anomaly_detector_ros.errors import UserError

# Bags, models, fitted files, settings, archives and pictures: each kind twice.
FILE_CASES = 2 * len(SUBJECTS)


def told(findings: Findings) -> str:
    return "\n".join(f"case {number}: {text}" for number, text in findings.failures)


def test_messages() -> None:
    findings = run_cases(fuzz_messages.make_case(3), range(400))
    assert not findings.failures, told(findings)
    assert findings.counts["accepted"] > 50
    assert findings.counts["refused"] > 50
    assert sum(findings.counts.values()) == 400


def test_files() -> None:
    findings = run_cases(fuzz_files.make_case(3), range(FILE_CASES), memory=4 << 30)
    assert not findings.failures, told(findings)
    assert findings.counts["refused"] > FILE_CASES // 4
    assert sum(findings.counts.values()) == FILE_CASES


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda s: s.name)
def test_files_that_are_not_mutated_are_accepted(subject: object, tmp_path: Path) -> None:
    assert subject.read(subject.make(tmp_path)) is not None  # type: ignore[attr-defined]


def test_mutations_depend_on_the_generator_alone() -> None:
    data = bytes(range(256)) * 4
    first, second, other = (mutate(data, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == second != other


def test_the_harness_notices_what_goes_wrong() -> None:
    def case(number: int) -> bool:
        if number == 1:
            raise UserError("refused: give another")
        if number == 2:
            faulthandler.disable()
            os.kill(os.getpid(), signal.SIGSEGV)
        if number == 3:
            time.sleep(60)
        if number == 4:
            raise ValueError("a bug")
        if number == 5:
            raise UserError("two\nlines")
        return True

    findings = run_cases(case, range(8), limit_s=1.0)
    assert dict(findings.counts) == {
        "accepted": 3, "refused": 1, "crashed": 1, "hung": 1, "failed": 2,
    }  # fmt: skip
    assert [number for number, _ in findings.failures] == [2, 3, 4, 5]
    assert "-11" in findings.failures[0][1]
    assert "ValueError: a bug" in findings.failures[2][1]
    assert "3 accepted, 1 refused, 2 failed, 1 crashed, 1 hung" in findings.summary("x", 0)
