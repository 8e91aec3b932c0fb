"""What the diagnostics make of a camera's counters."""

from __future__ import annotations

from typing import Any

import pytest

from anomaly_detector_ros.profiles import load_profile
from anomaly_detector_ros.ros.counters import DROP_REASONS, Snapshot
from anomaly_detector_ros.ros.diagnostics import ERROR, OK, WARN, Status, camera_status, node_status


def judge(snapshot: Snapshot, **changes: Any) -> Status:
    state = {"active": True, "enabled": True, "topic": "/c/image_raw", "publishers": 1, "qos": ""}
    return camera_status(snapshot, **{**state, **changes})


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
