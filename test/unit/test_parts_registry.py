"""Parts register themselves by name; their settings are checked in one place."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Gt, Le

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.runtime.parts import PartRegistry, read_settings

OWN = """
from dataclasses import dataclass
from anomaly_kinds import KINDS

@KINDS.register("own")
@dataclass(frozen=True)
class Own:
    weight: float = 1.0
"""


@dataclass(frozen=True)
class Blur:
    level: Annotated[float, Gt(0), Le(1)] = 0.5
    steps: Annotated[int, Gt(0)] = 1
    mode: Literal["soft", "hard"] = "soft"
    range: tuple[float, float] = (0.0, 1.0)
    quick: bool = False


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PartRegistry[object]:
    """A room with one built-in part, ``blur``, in a package of its own."""
    package = tmp_path / "anomaly_kinds"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from anomaly_detector_ros.runtime.parts import PartRegistry\n"
        "KINDS = PartRegistry('filter', 'anomaly_kinds')\n"
    )
    (package / "blur.py").write_text(OWN.replace("own", "blur").replace("Own", "Blur"))
    monkeypatch.syspath_prepend(tmp_path)
    for name in [n for n in sys.modules if n.split(".")[0] == "anomaly_kinds"]:
        monkeypatch.delitem(sys.modules, name)
    import anomaly_kinds  # type: ignore[import-not-found]

    return anomaly_kinds.KINDS


def test_built_in_parts_are_found_by_their_files(registry: PartRegistry[object]) -> None:
    assert registry.names() == ["blur"]
    assert registry.read({"name": "blur", "weight": 2}).weight == 2.0


def test_a_part_from_a_file_of_its_own(registry: PartRegistry[object], tmp_path: Path) -> None:
    file = tmp_path / "elsewhere.py"
    file.write_text(OWN)
    assert registry.read({"name": f"{file}:own"}).weight == 1.0
    assert registry.get("own") is registry.get(f"{file}:own")


def test_a_file_that_fails_is_named(registry: PartRegistry[object], tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("1 / 0")
    for _ in range(2):
        with pytest.raises(UserError, match=r"broken.py' for a filter \(division by zero"):
            registry.get(f"{file}:own")


def test_an_unknown_part_names_the_nearest(registry: PartRegistry[object]) -> None:
    with pytest.raises(UserError, match=r"unknown filter 'blurr' .did you mean 'blur'"):
        registry.read({"name": "blurr"})
    with pytest.raises(UserError, match="a filter needs a name: choose one of blur"):
        registry.read({"weight": 1})


def test_two_parts_cannot_share_a_name(registry: PartRegistry[object]) -> None:
    registry.names()
    with pytest.raises(ValueError, match="two filter parts are named 'blur'"):
        registry.register("blur")(type("Another", (), {}))


def test_what_people_write_is_taken() -> None:
    written = {"level": "1e-1", "steps": 3, "mode": "hard", "range": [1, 2], "quick": True}
    assert read_settings(Blur, written, "blur") == Blur(0.1, 3, "hard", (1.0, 2.0), True)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"levle": 1}, r"filter blur has no setting 'levle' \(did you mean 'level'\?\): known are"),
        ({"level": 0}, r"filter blur: level is 0: it must be greater than 0"),
        ({"level": 1.5}, r"level is 1.5: it must be less than or equal to 1"),
        ({"level": "much"}, r"level is 'much': it must be a valid number"),
        ({"level": True}, r"level is True: give a number"),
        ({"steps": 1.5}, r"steps is 1.5: it must be a valid integer"),
        ({"mode": "loud"}, r"mode is 'loud': it must be 'soft' or 'hard'"),
        ({"range": [1]}, r"range"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(written: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        read_settings(Blur, written, "filter blur")
    assert "\n" not in str(raised.value)


def test_a_missing_setting_is_named() -> None:
    @dataclass(frozen=True)
    class Model:
        model: str

    with pytest.raises(UserError, match="denoiser lacks the setting 'model': add it"):
        read_settings(Model, {}, "denoiser")
