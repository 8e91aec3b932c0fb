"""What the diagnostics make of a camera's counters."""

from __future__ import annotations

from typing import Any

import pytest

from anomaly_detector_ros.profiles import load_profile
from anomaly_detector_ros.ros.counters import DROP_REASONS, Snapshot
from anomaly_detector_ros.ros.diagnostics import (
    ERROR,
    OK,
    WARN,
    Intake,
    Status,
    camera_status,
    costmap_status,
    node_status,
)
from anomaly_detector_ros.ros.output import OutputState


def intake(snapshot: Snapshot, **changes: Any) -> Intake:
    state = {"active": True, "enabled": True, "topic": "/c/image_raw", "publishers": 1, "qos": ""}
    return Intake(snapshot, **{**state, **changes})


def judge(snapshot: Snapshot, **changes: Any) -> Status:
    return camera_status(intake(snapshot, **changes))


GOOD = Snapshot(received=9, processed=7, dropped={"replaced": 2}, recent={"processed": 7})


@pytest.mark.parametrize(
    ("snapshot", "changes", "level", "words"),
    [
        (GOOD, {}, OK, "processed"),
        (GOOD, {"active": False}, OK, "not active"),
        (GOOD, {"enabled": False}, OK, "paused"),
        (Snapshot(silence=9.0), {"publishers": 0}, WARN, "nobody publishes"),
        (Snapshot(silence=9.0), {"qos": "a publisher differs"}, ERROR, "differs"),
        (Snapshot(recent={"bad": 3}, problem="no pixels"), {}, ERROR, "3 bad"),
        (Snapshot(recent={"bad": 3, "processed": 1}, problem="no pixels"), {}, WARN, "no pixels"),
        (Snapshot(recent={"failed": 1}, problem="out of memory"), {}, ERROR, "out of memory"),
        (Snapshot(recent={"hung": 1}, problem="no result"), {}, ERROR, "1 hung"),
        (Snapshot(recent={"too_old": 4}, problem="2 s old"), {}, ERROR, "4 too old"),
        (Snapshot(recent={"replaced": 4, "processed": 1}), {}, OK, "processed"),
    ],
)
def test_camera_levels(snapshot: Snapshot, changes: dict, level: int, words: str):
    status = judge(snapshot, **changes)
    assert status.level == level
    assert words in status.message


@pytest.mark.parametrize(
    ("snapshot", "changes", "stops"),
    [
        (GOOD, {}, False),
        (GOOD, {"active": False}, True),
        (GOOD, {"enabled": False}, True),
        (Snapshot(silence=9.0), {}, True),
        (Snapshot(recent={"bad": 3}, problem="no pixels"), {}, True),
        (Snapshot(recent={"bad": 3, "processed": 1}, problem="no pixels"), {}, False),
        (GOOD, {"qos": "a subscriber differs"}, False),
    ],
)
def test_what_stops_every_output_is_told(snapshot: Snapshot, changes: dict, stops: bool):
    asked = intake(snapshot, **changes)
    assert asked.obstacle == (judge(snapshot, **changes).message if stops else "")


FINE = {"heatmap": OutputState(True), "mask": OutputState()}


@pytest.mark.parametrize(
    ("outputs", "level"),
    [
        (FINE, OK),
        ({**FINE, "obstacles": OutputState(True, "no camera_info", 4.0)}, WARN),
        ({**FINE, "obstacles": OutputState(True, "no camera_info", 6.0)}, ERROR),
        ({**FINE, "obstacles": OutputState(False)}, OK),
    ],
)
def test_an_output_that_cannot_be_made_raises_the_level(outputs: dict, level: int):
    status = camera_status(intake(GOOD), outputs)
    assert status.level == level
    assert status.values["output: heatmap"] == "fine"
    assert status.values["output: mask"] == "nobody listens"
    if level != OK:
        assert "obstacles cannot be made for" in status.message
        assert "no camera_info" in status.message
        assert "no camera_info" in status.values["output: obstacles"]
    share = {"front": OutputState(True), "rear": outputs.get("obstacles", OutputState())}
    grid = costmap_status(share, {})
    assert grid.level == level
    assert ("rear cannot be made" in grid.message) == (level != OK)


def test_silence_is_an_error_where_somebody_listens_for_long():
    silent = intake(Snapshot(silence=9.0))
    assert camera_status(silent).level == WARN
    outputs = {"heatmap": OutputState(True, silent.obstacle, 9.0)}
    status = camera_status(silent, outputs)
    assert status.level == ERROR
    assert status.message == silent.obstacle
    both = {**outputs, "detections": OutputState(True, "vision_msgs is missing", 2.0)}
    assert "vision_msgs" in camera_status(silent, both).values["output: detections"]


def test_camera_values_list_every_drop_reason():
    dropped = {reason: number for number, reason in enumerate(DROP_REASONS)}
    values = judge(Snapshot(received=20, processed=5, dropped=dropped)).values
    assert values["dropped"] == str(sum(dropped.values()))
    for reason, number in dropped.items():
        assert values[f"dropped: {reason}"] == str(number)


def test_a_node_that_failed_to_configure_is_an_error():
    status = node_status("unconfigured", True, "no weights: fetch them", None, 0.0)
    assert (status.level, status.message) == (ERROR, "no weights: fetch them")
    assert node_status("unconfigured", True, "", None, 0.0).level == WARN


class Loaded:
    """What the diagnostics read of a detector."""

    profile = load_profile("light")
    device = "cuda"
    calibrated = True

    def memory_bytes(self) -> int:
        return 2**20


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({}, OK, "active"),
        ({"degraded": "on the CPU: 2 GiB wanted"}, WARN, "on the CPU: 2 GiB wanted"),
        ({"restarts": 2}, OK, "active"),
        ({"fault": "3 detector threads hang", "degraded": "on the CPU"}, ERROR, "3 detector"),
    ],
)
def test_a_node_with_models_says_what_ails_it(changes: dict, level: int, words: str):
    fault = changes.pop("fault", "")
    status = node_status("active", True, fault, Loaded(), 0.3, **changes)
    assert status.level == level
    assert words in status.message
    assert status.values["detector thread restarts"] == str(changes.get("restarts", 0))
