"""The parameter table: what is accepted, what is refused and why, and the files that repeat it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from anomaly_detector_ros.profiles import profile_names
from anomaly_detector_ros.resources import share_dir
from anomaly_detector_ros.ros.parameters import BY_NAME, SPECS, problem, refusal

DEFAULTS = {spec.name: spec.default for spec in SPECS}


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_defaults_are_acceptable_and_described(spec):
    assert problem(spec.name, spec.default) is None
    assert spec.text.endswith(".")
    if isinstance(spec.default, (int, float)) and not isinstance(spec.default, bool):
        assert spec.minimum <= spec.default <= spec.maximum


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("threshold", 1.5, "within"),
        ("threshold", -0.5, "within [0, 1]"),
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
        "jpeg_quality": 50,
    }.get(spec.name, not spec.default)
    refused = refusal({spec.name: other}, DEFAULTS, configured=True)
    assert (refused is None) == spec.live
    if refused:
        assert "unconfigured" in refused
    # Setting the value in force, as tools that load a whole file do, is no change.
    assert refusal({spec.name: spec.default}, DEFAULTS, configured=True) is None


def test_profiles_are_looked_up_where_models_dir_says(tmp_path: Path):
    refused = refusal({"profile": "no_such"}, DEFAULTS, configured=False)
    assert refused is not None
    assert "no_such" in refused
    source = yaml.safe_load((share_dir("models") / "profiles.yaml").read_text())
    (tmp_path / "profiles.yaml").write_text(yaml.safe_dump({"mine": source["embedded"]}))
    both = {"profile": "mine", "models_dir": str(tmp_path)}
    assert refusal(both, DEFAULTS, configured=False) is None
    assert refusal({"profile": "mine"}, DEFAULTS, configured=False) is not None


def test_one_bad_value_refuses_the_whole_set():
    refused = refusal({"threshold": 0.5, "max_rate": -1.0}, DEFAULTS, configured=False)
    assert refused is not None
    assert "max_rate" in refused


def test_parameter_file_holds_every_parameter_at_its_default():
    content = yaml.safe_load((share_dir("config") / "anomaly_detector.yaml").read_text())
    assert content["/**"]["ros__parameters"] == DEFAULTS


def test_parameter_file_comments_every_parameter():
    lines = (share_dir("config") / "anomaly_detector.yaml").read_text().splitlines()
    for name in BY_NAME:
        (at,) = (i for i, line in enumerate(lines) if line.strip().startswith(f"{name}:"))
        assert lines[at - 1].strip().startswith("#"), name
