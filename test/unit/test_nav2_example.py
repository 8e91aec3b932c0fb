"""config/nav2_costmap.yaml: its topics are the node's, and no trap of Nav2 is left open."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml

from anomaly_detector_ros.imaging.rendering import CLASSES, IMAGE_OUTPUTS
from anomaly_detector_ros.mapping.costmap import HIGHEST, HIT
from anomaly_detector_ros.mapping.obstacles import ObstacleSettings
from anomaly_detector_ros.ros.parameters import BY_NAME
from anomaly_detector_ros.runtime.resources import share_dir

FILE = share_dir("config") / "nav2_costmap.yaml"


@pytest.fixture(scope="module")
def costmap() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())["local_costmap"]["local_costmap"]["ros__parameters"]


def topics(tree: Any) -> list[str]:
    """Every topic in the file, in order."""
    if not isinstance(tree, dict):
        return []
    return [
        topic
        for key, value in tree.items()
        for topic in ([value] if key == "topic" or key.endswith("_topic") else topics(value))
    ]


def node_topics() -> set[str]:
    """Full names of the node's outputs for the default camera, by its own tables."""
    pytest.importorskip("rclpy", reason="rclpy is not installed")
    from anomaly_detector_ros.ros.costmap import TOPIC
    from anomaly_detector_ros.ros.node import NODE_NAME
    from anomaly_detector_ros.ros.obstacles import OUTPUTS

    (camera,) = BY_NAME["cameras"].default
    outputs = (*IMAGE_OUTPUTS, *OUTPUTS, "label_info")
    return {
        *(f"/{NODE_NAME}/{camera}/{output}" for output in outputs),
        TOPIC.replace("~", f"/{NODE_NAME}"),
    }


def test_topics_are_the_nodes(costmap):
    found = topics(costmap)
    assert len(found) == 6
    assert set(found) <= node_topics()


def test_plugins_are_the_layers_described(costmap):
    assert costmap["plugins"][-1] == "inflation_layer"
    assert all("plugin" in costmap[name] for name in costmap["plugins"])
    layers = {name for name, value in costmap.items() if isinstance(value, dict)}
    assert layers == set(costmap["plugins"])


def test_costmap_is_rolling_and_one_hit_is_lethal(costmap):
    assert costmap["rolling_window"] is True
    assert costmap["track_unknown_space"] is False
    assert costmap["use_maximum"] is True
    assert costmap["static_layer"]["map_subscribe_transient_local"] is True
    once, most = (100 / (1 + math.exp(-evidence)) for evidence in (HIT, HIGHEST))
    assert 50 < costmap["lethal_cost_threshold"] <= once
    assert most < 99  # Nav2 takes 99 for an inscribed obstacle


def test_every_source_of_the_obstacle_layer_lets_points_through(costmap):
    layer = costmap["obstacle_layer"]
    for name in layer["observation_sources"].split():
        source = layer[name]
        assert source["data_type"] == "PointCloud2"
        assert 0.0 < source["max_obstacle_height"] <= layer["max_obstacle_height"]
        assert layer["min_obstacle_height"] <= source["min_obstacle_height"] < 0.0
        assert source["obstacle_max_range"] >= ObstacleSettings().max_range
        assert source["raytrace_max_range"] > source["obstacle_max_range"]
        assert source["expected_update_rate"] == 0.0


def test_classes_of_the_segmentation_layer_are_those_of_label_info(costmap):
    layer = costmap["semantic_segmentation_layer"]
    for name in layer["observation_sources"].split():
        source = layer[name]
        classes = [label for kind in source["class_types"] for label in source[kind]["classes"]]
        assert sorted(classes) == sorted(CLASSES.values())
        assert source["obstacle"]["classes"] == [CLASSES[255]]
        assert source["obstacle"]["max_cost"] == 254
        assert source["use_cost_selection"] is True


def test_every_setting_beyond_names_is_explained():
    """A comment stands before each trap; the file is read by people."""
    lines = FILE.read_text().splitlines()
    for key in (
        "rolling_window",
        "transform_tolerance",
        "track_unknown_space",
        "use_maximum",
        "lethal_cost_threshold",
        "map_topic",
        "map_subscribe_transient_local",
        "data_type",
        "sensor_frame",
        "obstacle_max_range",
        "clearing",
        "expected_update_rate",
        "confidence_topic",
        "labels_topic",
        "pointcloud_topic",
        "use_cost_selection",
    ):
        (first, *_) = (i for i, line in enumerate(lines) if line.strip().startswith(f"{key}:"))
        assert lines[first - 1].strip().startswith("#"), key
