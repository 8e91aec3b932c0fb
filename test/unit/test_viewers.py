"""The Foxglove layout and the RViz file: whole, and of topics that the node has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from anomaly_detector_ros.imaging.rendering import IMAGE_OUTPUTS
from anomaly_detector_ros.ros.counters import CameraCounters
from anomaly_detector_ros.ros.diagnostics import Intake, camera_status
from anomaly_detector_ros.runtime.resources import share_dir

CAMERA = "/anomaly_detector/camera/"
OUTPUTS = {*IMAGE_OUTPUTS, "overlay/compressed", "camera_info", "obstacles", "markers", "taken"}
TOPICS = {CAMERA + output for output in OUTPUTS} | {
    "/anomaly_detector/costmap",
    "/anomaly_detector/taken",
    "/diagnostics",
}


@pytest.fixture(scope="module")
def layout() -> dict[str, Any]:
    return json.loads((share_dir("config") / "foxglove_layout.json").read_text())


def panels(tree: Any) -> Iterator[str]:
    """Ids of the panels in the tree of splits."""
    if isinstance(tree, str):
        yield tree
        return
    assert set(tree) == {"direction", "first", "second", "splitPercentage"}
    assert tree["direction"] in ("row", "column")
    assert 0 < tree["splitPercentage"] < 100
    for side in ("first", "second"):
        yield from panels(tree[side])


def strings(value: Any) -> Iterator[str]:
    """All texts in a panel's configuration, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def test_has_what_foxglove_imports(layout: dict[str, Any]):
    assert set(layout) == {"configById", "globalVariables", "userNodes", "playbackConfig", "layout"}
    shown = list(panels(layout["layout"]))
    assert sorted(shown) == sorted(layout["configById"])
    assert all(re.fullmatch(r"(Image|3D|Plot|DiagnosticSummary)!\w+", panel) for panel in shown)


def test_shows_topics_of_the_node(layout: dict[str, Any]):
    named = {
        text.split(".")[0]
        for config in layout["configById"].values()
        for text in strings(config)
        if text.startswith("/")
    }
    assert named <= TOPICS
    assert named >= {
        CAMERA + "overlay/compressed",
        CAMERA + "heatmap",
        CAMERA + "mask",
        CAMERA + "obstacles",
        CAMERA + "markers",
        "/anomaly_detector/costmap",
        "/diagnostics",
    }


def test_images_have_fixed_limits_where_they_have_one_channel(layout: dict[str, Any]):
    for config in layout["configById"].values():
        mode = config.get("imageMode") or {}
        output = mode.get("imageTopic", "").removeprefix(CAMERA)
        if output in IMAGE_OUTPUTS and IMAGE_OUTPUTS[output].encoding in ("32FC1", "mono8"):
            largest = 1 if IMAGE_OUTPUTS[output].encoding == "32FC1" else 255
            assert (mode["minValue"], mode["maxValue"]) == (0, largest)


def test_images_are_shown_whether_the_camera_is_calibrated_or_not(layout: dict[str, Any]):
    # With the topic of a calibration that says nothing, Foxglove shows a black panel.
    modes = [config.get("imageMode") or {} for config in layout["configById"].values()]
    assert not any("calibrationTopic" in mode for mode in modes)


def test_plots_values_that_the_diagnostics_have(layout: dict[str, Any]):
    counts = CameraCounters().snapshot()
    status = camera_status(
        Intake(counts, active=True, enabled=True, topic="", publishers=1, qos="")
    )
    paths = [
        path["value"]
        for panel, config in layout["configById"].items()
        if panel.startswith("Plot!")
        for path in config["paths"]
    ]
    assert paths
    for path in paths:
        pattern = (
            r'/diagnostics\.status\[:\]\{name=="anomaly_detector: camera"\}'
            r'\.values\[:\]\{key=="(.+)"\}\.value'
        )
        assert re.fullmatch(pattern, path)[1] in status.values


def test_rviz_shows_the_first_cameras_outputs():
    content = yaml.safe_load((share_dir("config") / "anomaly_detector.rviz").read_text())
    displays = {d["Name"]: d for d in content["Visualization Manager"]["Displays"]}
    for name in ("Overlay", "Heatmap", "Mask"):
        assert displays[name]["Class"] == "rviz_default_plugins/Image"
        topic = displays[name]["Topic"]
        assert topic["Value"] == f"anomaly_detector/camera/{name.lower()}"
        assert topic["Reliability Policy"] == "Reliable"
        assert topic["Depth"] == 1
    assert displays["Input"]["Topic"]["Reliability Policy"] == "Best Effort"
    heatmap = displays["Heatmap"]
    assert (heatmap["Normalize Range"], heatmap["Min Value"], heatmap["Max Value"]) == (False, 0, 1)
    assert displays["Obstacles"]["Topic"]["Value"] == "anomaly_detector/camera/obstacles"
    costmap = displays["Costmap"]["Topic"]
    assert costmap["Value"] == "anomaly_detector/costmap"
    assert costmap["Durability Policy"] == "Transient Local"
    assert displays["Anomalies"]["Class"] == "rviz_default_plugins/MarkerArray"
    assert displays["Anomalies"]["Topic"]["Value"] == "anomaly_detector/camera/markers"


def test_both_show_what_a_click_took_and_rviz_has_the_tool_to_click(layout: dict[str, Any]):
    overlay = layout["configById"]["Image!overlay"]["imageMode"]
    assert overlay["annotations"] == {CAMERA + "taken": {"visible": True}}
    scene = layout["configById"]["3D!obstacles"]["topics"]
    assert scene["/anomaly_detector/taken"] == {"visible": True}
    manager = yaml.safe_load((share_dir("config") / "anomaly_detector.rviz").read_text())[
        "Visualization Manager"
    ]
    (taken,) = (d for d in manager["Displays"] if d["Class"] == "rviz_default_plugins/Marker")
    assert taken["Topic"]["Value"] == "anomaly_detector/taken"
    assert {"Class": "rviz_default_plugins/PublishPoint"} in manager["Tools"]


def test_rviz_finds_the_panels_that_it_is_to_place():
    content = yaml.safe_load((share_dir("config") / "anomaly_detector.rviz").read_text())
    state = bytes.fromhex(str(content["Window Geometry"]["QMainWindow State"]))
    displays = content["Visualization Manager"]["Displays"]
    pictures = {d["Name"] for d in displays if d["Class"] == "rviz_default_plugins/Image"}
    panels = {panel["Name"] for panel in content["Panels"]}
    placed = {name for name in pictures | panels if name.encode("utf-16-be") in state}
    assert placed == pictures | panels
    assert placed <= content["Window Geometry"].keys()
