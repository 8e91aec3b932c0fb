"""What was given to the node and means nothing to it: unknown names, files for other nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomaly_detector_ros.ros.given import foreign_files, unknown_parameters
from anomaly_detector_ros.ros.parameters import BY_NAME, as_declared, camera_specs

KNOWN = {*BY_NAME, *camera_specs(["camera", "rear/left"])}


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("treshold", "threshold"),
        ("camera.heigth", "camera.height"),
        ("max_range", "obstacles.max_range"),
        ("costmap.deccay", "costmap.decay"),
        ("rear.left.treshold", "rear.left.threshold"),
        ("decay", "costmap.decay"),
        ("profil", "profile"),
    ],
)
def test_the_nearest_name_is_told(name: str, nearest: str):
    (line,) = unknown_parameters([name, "threshold"], KNOWN)
    assert line == f"unknown parameter '{name}': did you mean '{nearest}'?"


def test_a_name_that_is_near_to_none_is_told_all_the_same():
    assert unknown_parameters(["xyzzy"], KNOWN) == ["unknown parameter 'xyzzy' is left aside"]
    assert unknown_parameters(KNOWN, KNOWN) == []


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        ("threshold", 1, 1.0),
        ("threshold", True, True),  # refused later, as any other type
        ("threshold", "1", "1"),
        ("jpeg_quality", 90, 90),
        ("grey_range", [0, 4095], [0.0, 4095.0]),
        ("grey_range", [0.5, 4095.0], [0.5, 4095.0]),
        ("cameras", ["a"], ["a"]),
    ],
)
def test_integers_are_numbers(name: str, given: object, taken: object):
    found = as_declared(BY_NAME[name], given)
    assert found == taken
    assert type(found) is type(taken)
    if isinstance(found, list):
        assert [type(each) for each in found] == [type(each) for each in taken]


NODE = "/robot/anomaly_detector"


@pytest.mark.parametrize(
    "names",
    ["/**", "/*/anomaly_detector", "/robot/anomaly_detector", "robot/anomaly_detector", "/robot/*",
     "/**/anomaly_detector"],
)  # fmt: skip
def test_a_file_for_the_node_is_none_for_another(tmp_path: Path, names: str):
    file = tmp_path / "own.yaml"
    file.write_text(f"other:\n  ros__parameters: {{a: 1}}\n{names}:\n  ros__parameters: {{a: 1}}\n")
    assert foreign_files(["node", "--ros-args", "--params-file", str(file)], NODE) == []


@pytest.mark.parametrize(
    "text",
    [
        "anomaly_detector:\n  ros__parameters: {threshold: 0.5}\n",  # of no namespace
        "detector:\n  ros__parameters: {threshold: 0.5}\n",
        "robot:\n  detector:\n    ros__parameters: {threshold: 0.5}\n",
        "/other/*:\n  ros__parameters: {threshold: 0.5}\n",
    ],
)
def test_a_file_for_another_node_is_told(tmp_path: Path, text: str):
    file = tmp_path / "theirs.yaml"
    file.write_text(text)
    (line,) = foreign_files(["node", "--ros-args", "--params-file", str(file)], NODE)
    assert str(file) in line
    assert f"this node is '{NODE}'" in line
    assert "'/**'" in line


def test_what_is_no_parameter_file_is_left_to_ros(tmp_path: Path):
    (tmp_path / "bad.yaml").write_text("{[")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    arguments = ["node", "--ros-args", "--params-file"]
    for name in ("bad.yaml", "list.yaml", "missing.yaml"):
        assert foreign_files([*arguments, str(tmp_path / name)], NODE) == []
    assert foreign_files(["node", "--params-file"], NODE) == []
