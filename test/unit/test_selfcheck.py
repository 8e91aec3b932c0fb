"""The selfcheck: what it finds, and what becomes of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from anomaly_detector_ros.building import Parts
from anomaly_detector_ros.cli.main import app
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.selfcheck import environment, measures, reference, run
from anomaly_detector_ros.selfcheck.finding import Finding, markdown, to_dict

FINDINGS = [
    Finding("Machine", "cores", "2 of 2"),
    Finding("Machine", "load", "9 | 10", "advice", "end other work"),
    Finding("Speed", "light", "0.5 s"),
    Finding("Speed", "paper", f"no weights in {Path.home()}/x", "skipped", "fetch them"),
    Finding("Accuracy", "edit", "differs by 3", "error", "tell us"),
]


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts(torch.device("cpu"), offline=True)


def test_trouble_has_a_remedy_and_nothing_else_has() -> None:
    with pytest.raises(ValueError, match="a remedy belongs"):
        Finding("a", "b", "c", "error")
    with pytest.raises(ValueError, match="a remedy belongs"):
        Finding("a", "b", "c", "ok", "change it")


def test_the_report_tells_first_what_to_change() -> None:
    report = markdown(FINDINGS, "anomaly-detector selfcheck", 12.3)
    assert "took 12 s: 2 ok, 1 with advice, 1 errors, 1 skipped" in report
    remedies = [report.index(f"{each}.\n") for each in ("tell us", "end other work", "fetch them")]
    assert remedies == sorted(remedies)
    assert report.index("## Machine") > max(remedies)
    assert "| load | 9 \\| 10 | **advice** |" in report
    assert str(Path.home()) not in report
    assert not to_dict(FINDINGS)["ok"]
    assert to_dict(FINDINGS[:-1])["ok"]


def test_every_part_computes_what_is_stored(parts: Parts) -> None:
    """Else: run scripts/write_selfcheck_reference.py if a model or a profile was to change."""
    wanted = reference.stored()
    assert set(wanted) == {part.name for part in reference.PARTS if part.needs}
    found = list(reference.check("cpu", parts, wanted, lambda p: p.tolerance, "mend it"))
    assert {each.status for each, _ in found} <= {"ok", "skipped"}, [each for each, _ in found]
    assert sum(each.status == "ok" for each, _ in found) >= 2  # the shipped models
    assert all(result is not None for each, result in found if each.status == "ok")


def test_another_result_and_an_exception_are_errors(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(parts: Parts) -> torch.Tensor:
        raise RuntimeError("no kernel\nfor this machine")

    one = reference.Part("one", "light", lambda parts: torch.ones(3), 1e-3, 1e-2)
    broken = reference.Part("broken", "light", fail, 1e-3, 1e-2)
    monkeypatch.setattr(reference, "PARTS", (one, broken))
    monkeypatch.setattr(parts.registry, "has", lambda name: True)
    wanted = {"one": torch.tensor([1.0, 1.0, 1.01]), "broken": torch.ones(3)}

    def statuses(tolerance: float) -> list[tuple[str, str]]:
        found = reference.check("cpu", parts, wanted, lambda p: tolerance, "mend it")
        return [(each.status, each.value) for each, _ in found]

    assert statuses(1e-2)[0] == ("ok", "differs by 0.0058, 0.01 allowed")
    assert statuses(1e-3)[0][0] == "error"
    assert statuses(1e-3)[1] == ("error", "RuntimeError: no kernel for this machine")


def test_differences() -> None:
    a = torch.tensor([3.0, 4.0])
    assert reference.difference(a, a) == 0
    assert reference.difference(a + torch.tensor([0.0, 0.5]), a) == pytest.approx(0.1)
    assert reference.difference(a, torch.ones(3)) == float("inf")
    assert reference.difference(torch.tensor([1.0, float("nan")]), a) == float("inf")
    labels = torch.tensor([True, False, True, True])
    assert reference.difference(labels, torch.tensor([1, 0, 1, 0], dtype=torch.uint8)) == 0.25


def test_the_machine_is_described_whatever_it_is(tmp_path: Path) -> None:
    names = [each.name for each in (*environment.machine(), *environment.ros())]
    assert {"versions", "processor", "cores", "memory", "allocator", "clocks", "rclpy"} <= {*names}
    assert environment._memory_limit(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    assert environment._memory_limit(tmp_path) is None
    (tmp_path / "memory.max").write_text("1048576\n")
    assert environment._memory_limit(tmp_path) == 2**20


def test_a_profile_of_fast_dds_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FASTRTPS_DEFAULT_PROFILES_FILE", str(tmp_path / "gone.xml"))
    found = environment._fastdds("ROS 2")
    assert (found.status, "correct or unset" in found.remedy) == ("advice", True)
    (tmp_path / "gone.xml").touch()
    assert environment._fastdds("ROS 2").status == "ok"


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without a GPU")
def test_an_expected_gpu_that_is_not_there_is_an_error() -> None:
    assert [each.status for each in environment.gpu(wanted=True)] == ["ok", "error"]


def test_weights_that_are_missing_have_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANOMALY_DETECTOR_CACHE", str(tmp_path))
    found = {each.name: each for each in environment.weights(quick=True)}
    assert found["offroad_small"].status == "ok"
    assert (found["mobile_sam"].status, found["not here"].status) == ("advice", "skipped")
    assert "sam_vit_h" in found["not here"].value
    assert "models fetch mobile_sam" in found["mobile_sam"].remedy
    assert environment.runnable_profiles() == []


def test_speed_of_a_profile(light_profile: str) -> None:
    found = list(measures.speed(light_profile, torch.device("cpu"), quick=True))
    assert [each.status for each in found] == ["ok"] * 5
    assert "s a frame" in found[1].value
    assert re.search(r"features \d+ ms predicted, \d+ measured.*GB/s", found[2].value)


@pytest.mark.parametrize(
    ("written", "status"),
    [
        ('{"sent": 90, "received": 90, "latency": {"median": 0.002, "p95": 0.01}}', "ok"),
        ('{"sent": 90, "received": 40, "latency": {"median": 0.002, "p95": 0.01}}', "advice"),
        ('{"sent": 0, "received": 0, "latency": {}}', "advice"),
        ("Traceback: no typesupport", "error"),
        ("", "error"),
    ],
)
@pytest.mark.skipif(find_spec("rclpy") is None, reason="rclpy is not installed")
def test_transport(monkeypatch: pytest.MonkeyPatch, written: str, status: str) -> None:
    monkeypatch.setattr(measures, "_ran", lambda *arguments: written)
    (found,) = measures.transport(quick=True)
    assert found.status == status


def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def look(count: int) -> None:
        def found(**options: bool) -> Iterator[Finding]:
            assert options == {"gpu": False, "quick": True}
            yield from FINDINGS[:count]

        monkeypatch.setattr(run, "selfcheck", found)

    def call() -> tuple[Exception | None, str]:
        arguments = ["selfcheck", "--quick", "--json", "--output", str(tmp_path / "report.md")]
        done = CliRunner().invoke(app, arguments)
        return done.exception, done.stdout

    look(4)
    error, written = call()
    assert error is None
    assert json.loads(written)["ok"]
    assert "selfcheck --quick` took" in (tmp_path / "report.md").read_text()
    look(5)
    error, written = call()
    assert isinstance(error, UserError)
    assert str(error) == "1 wrong, the first: edit: tell us"
    assert not json.loads(written)["ok"]
    assert "differs by 3" in (tmp_path / "report.md").read_text()


def test_it_goes_on_after_what_it_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without stored results, with a detector that runs out of memory, and without a GPU."""

    def missing() -> None:
        raise UserError("cannot read it")

    def too_much(*arguments: object) -> Iterator[Finding]:
        raise torch.OutOfMemoryError("CUDA out of memory")
        yield

    monkeypatch.setattr(run, "stored", missing)
    monkeypatch.setattr(run, "check", lambda *arguments: iter(()))
    monkeypatch.setattr(environment, "runnable_profiles", lambda: ["light", "embedded"])
    monkeypatch.setattr(measures, "speed", too_much)
    monkeypatch.setattr(measures, "transport", lambda quick: iter([FINDINGS[0]]))
    monkeypatch.setattr(environment, "gpu", lambda wanted: iter(()))
    found = list(run.selfcheck(gpu=False, quick=False))
    errors = [(each.name, each.remedy) for each in found if each.status == "error"]
    memory = "end what else uses the memory, or take smaller batches"
    assert errors == [
        ("stored results", "reinstall the package"),
        ("light", memory),
        ("embedded", memory),
    ]
    assert found[-1] == FINDINGS[0]
