"""The parameter table: what is accepted, what is refused and why, and the files that repeat it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from anomaly_detector_ros.mapping.obstacle_finder import SOURCES
from anomaly_detector_ros.profiles import profile_names
from anomaly_detector_ros.ros.parameter_files import COMMAND, FILES, launch_arguments
from anomaly_detector_ros.ros.parameters import (
    BY_NAME,
    CAMERA_SPECS,
    OVERRIDES,
    POSES,
    SPECS,
    camera_parameter,
    descriptor,
    problem,
    refusal,
)
from anomaly_detector_ros.runtime.resources import share_dir

DEFAULTS = {spec.name: spec.default for spec in SPECS}


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_defaults_are_acceptable_and_described(spec):
    assert problem(spec.name, spec, spec.default) is None
    assert spec.text.endswith(".")
    if isinstance(spec.default, (int, float)) and not isinstance(spec.default, bool):
        assert spec.bounds[0] <= spec.default <= spec.bounds[1]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("threshold", 1.5, "within"),
        ("threshold", -0.5, "0 to 1, or -1"),
        ("threshold", float("nan"), "within"),
        ("threshold", "high", "a number"),
        ("max_input_age", -1.0, "within"),
        ("max_rate", float("inf"), "within"),
        ("jpeg_quality", 0, "within"),
        ("jpeg_quality", 90.0, "an integer"),
        ("offline", 1, "true or false"),
        ("image_transport", "theora", "raw, compressed"),
        ("device", "tpu", "cuda:N"),
        ("device", "cuda:", "cuda:N"),
        ("models_dir", "/no/such/directory", "not a directory"),
        ("cameras", [], "at least one"),
        ("cameras", ["front", "front"], "twice"),
        ("cameras", ["/front"], "relative topic name"),
        ("cameras", ["front camera"], "relative topic name"),
        ("cameras", [""], "relative topic name"),
        ("cameras", "front", "string array"),
        ("watchdog_timeout", -1.0, "within"),
        ("temporal_filter", 100.0, "within"),
        ("camera.max_rate", -2.0, "within"),
        ("camera.max_rate", -0.5, "or -1"),
        ("camera.threshold", 1.2, "within"),
        ("camera.image_transport", "theora", "raw, compressed"),
        ("camera.calibration", "/no/such/file", "not a file"),
        ("camera.max_rate", "fast", "a number"),
        ("skip_similar", 256.0, "within"),
        ("obstacles.source", "lidar", "auto, depth, ground"),
        ("obstacles.max_range", 0.0, "within"),
        ("obstacles.min_pixels", 0, "within"),
        ("base_frame", "", "a frame"),
        ("costmap.frame", "", "a frame"),
        ("costmap.resolution", 0.0, "within"),
        ("camera.height", -1.0, "within"),
        ("camera.pitch", float("nan"), "within"),
        ("grey_range", [7.0], "two numbers"),
        ("grey_range", [9.0, 7.0], "the lower one first"),
        ("grey_range", [0.0, float("inf")], "finite"),
        ("camera.extrinsics", [0.0] * 15, "16"),
        ("camera.extrinsics", [1.0] * 16, "rotation"),
        ("camera.extrinsics", "identity", "16 numbers"),
    ],
)
def test_bad_values_are_refused_with_the_reason(name: str, value: Any, reason: str):
    refused = refusal({name: value}, DEFAULTS, configured=False)
    assert refused is not None
    assert name in refused
    assert reason in refused
    assert "\n" not in refused


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", 0.0),
        ("threshold", 1.0),
        ("threshold", -1.0),
        ("max_rate", 12.5),
        ("device", "cuda:1"),
        ("image_transport", "compressed"),
        ("cameras", ["front", "rear/left_1"]),
        ("profile", "light"),
        ("qos_overrides./camera/image_raw.subscription.depth", 3),
        ("camera.max_rate", 0.0),
        ("camera.max_rate", -1.0),
        ("camera.image_transport", ""),
        ("camera.image_transport", "compressed"),
        ("other.max_rate", -7.0),
        ("obstacles.source", "depth"),
        ("camera.height", 1.2),
        ("camera.roll", -3.1),
        ("grey_range", [7000.0, 9000.0]),
        ("camera.extrinsics", [float(row == column) for row in range(4) for column in range(4)]),
    ],
)
def test_good_values_are_accepted(name: str, value: Any):
    assert refusal({name: value}, DEFAULTS, configured=False) is None


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_only_live_parameters_change_while_configured(spec):
    other = {
        "cameras": ["front"],
        "image_transport": "compressed",
        "profile": profile_names()[-1],
        "models_dir": str(share_dir("models")),
        "device": "cpu",
        "threshold": 0.9,
        "max_input_age": 2.0,
        "max_rate": 3.0,
        "grey_range": [7000.0, 9000.0],
        "calibration_frames": 50,
        "calibration_output": "/tmp/front.safetensors",
        "teach_seconds": 20.0,
        "teach_frames": 10,
        "jpeg_quality": 50,
        "temporal_filter": 0.5,
        "watchdog_timeout": 7.0,
        "skip_similar": 4.0,
        "base_frame": "base",
        "rectification": "raw",
        "image_frame": "body",
        "depth_unit": 0.01,
        "obstacles.source": "ground",
        "obstacles.max_range": 9.0,
        "obstacles.voxel_size": 0.0,
        "obstacles.min_pixels": 1,
        "costmap.frame": "map",
    }.get(spec.name, not spec.default)
    refused = refusal({spec.name: other}, DEFAULTS, configured=True)
    assert (refused is None) == spec.live
    if refused:
        assert "unconfigured" in refused
    # Setting the value in force, as tools that load a whole file do, is no change.
    assert refusal({spec.name: spec.default}, DEFAULTS, configured=True) is None


def test_a_camera_s_own_parameters_follow_its_name():
    assert camera_parameter("front", "max_rate") == "front.max_rate"
    assert camera_parameter("rear/left", "calibration") == "rear.left.calibration"
    for spec in OVERRIDES:
        # The default stands for the node's own, so it must not be a value of its own.
        assert type(spec.default) is type(BY_NAME[spec.name].default)
        assert spec.live == BY_NAME[spec.name].live
    assert not {spec.name for spec in POSES} & set(BY_NAME)
    for spec in CAMERA_SPECS:
        changed = {camera_parameter("rear/left", spec.name): spec.default}
        current = {**DEFAULTS, "cameras": ["rear/left"]}
        assert refusal(changed, current, configured=False) is None
    current["rear.left.image_transport"] = "raw"
    changed = {"rear.left.image_transport": "compressed"}
    assert "unconfigured" in refusal(changed, current, configured=True)
    assert refusal({"rear.left.max_rate": 2.0}, current, configured=True) is None


def test_profiles_are_looked_up_where_models_dir_says(tmp_path: Path):
    refused = refusal({"profile": "no_such"}, DEFAULTS, configured=False)
    assert refused is not None
    assert "no_such" in refused
    source = yaml.safe_load((share_dir("models") / "profiles.yaml").read_text())
    (tmp_path / "profiles.yaml").write_text(yaml.safe_dump({"mine": source["embedded"]}))
    both = {"profile": "mine", "models_dir": str(tmp_path)}
    assert refusal(both, DEFAULTS, configured=False) is None
    assert refusal({"profile": "mine"}, DEFAULTS, configured=False) is not None


def test_sources_of_distances_are_those_there_are():
    assert BY_NAME["obstacles.source"].choices == SOURCES


def test_one_bad_value_refuses_the_whole_set():
    refused = refusal({"threshold": 0.5, "max_rate": -1.0}, DEFAULTS, configured=False)
    assert refused is not None
    assert "max_rate" in refused


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by full name, as rclpy reads a parameter file."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def test_parameter_file_holds_every_parameter_at_its_default():
    content = yaml.safe_load((share_dir("config") / "anomaly_detector.yaml").read_text())
    assert flat(content["/**"]["ros__parameters"]) == DEFAULTS


@pytest.mark.parametrize("name", FILES)
def test_files_are_those_of_the_table(name: str):
    written = (Path(__file__).parents[2] / name).read_text()
    assert written == FILES[name](), f"{name} is not of the table: run {COMMAND}"


def test_parameter_file_shows_what_each_camera_has_of_its_own():
    lines = (share_dir("config") / "anomaly_detector.yaml").read_text().splitlines()
    start = lines.index("    # rear:")
    example = "\n".join(line.removeprefix("    # ") for line in lines[start:])
    (left,) = yaml.safe_load(example)["rear"].values()
    assert left == {spec.name: spec.default for spec in CAMERA_SPECS}


def test_launch_arguments_are_parameters_with_their_types():
    found = launch_arguments()
    assert set(found) >= {"cameras", "profile", "calibration", "threshold"}
    assert found["cameras"][0] == list[str]
    assert found["threshold"] == (float, BY_NAME["threshold"].text)


def test_sliders_have_steps_and_ranges_worth_having():
    """rqt_reconfigure draws a slider over the range of a number."""
    pytest.importorskip("rcl_interfaces.msg", reason="rcl_interfaces is not installed")
    for spec in SPECS:
        made = descriptor(spec.name, spec)
        for bounds in made.integer_range:
            assert bounds.step == 1
        for bounds in made.floating_point_range:
            assert bounds.from_value <= spec.default <= bounds.to_value <= 600.0
