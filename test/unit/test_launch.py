"""The launch file: its arguments and the processes that they come to.

What a description comes to needs launch and launch_ros, which a ROS installation carries.
"""

from __future__ import annotations

import ast
import importlib.util
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from anomaly_detector_ros.resources import share_dir
from anomaly_detector_ros.ros.parameters import BY_NAME, problem

FILE = share_dir("launch") / "anomaly_detector.launch.py"
FASTDDS = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")


def parameters_of_file() -> dict[str, str]:
    """The launch file's table PARAMETERS, read without executing the file."""
    for node in ast.walk(ast.parse(FILE.read_text(), str(FILE))):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "PARAMETERS":
            return ast.literal_eval(node.value)
    pytest.fail("the launch file has no PARAMETERS")


def test_offers_parameters_of_the_node_only():
    assert set(parameters_of_file()) <= set(BY_NAME)


@pytest.fixture
def launch_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The launch file as a module, where the environment sets no Fast DDS profile."""
    pytest.importorskip("launch.actions", reason="launch is not installed")
    pytest.importorskip("launch_ros.actions", reason="launch_ros is not installed")
    for name in FASTDDS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # launch_ros leaves its files
    return load()


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("anomaly_detector_launch", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def processes(launch_file: ModuleType, **arguments: str) -> tuple[Any, list[Any]]:
    """The context and the actions that the arguments come to; none of them is executed."""
    from launch import LaunchContext
    from launch.actions import DeclareLaunchArgument

    context = LaunchContext()
    context.launch_configurations.update(arguments)
    made: list[Any] = []
    for entity in launch_file.generate_launch_description().entities:
        result = entity.execute(context)
        if not isinstance(entity, DeclareLaunchArgument):
            made += result or []
    return context, made


def node(made: list[Any], executable: str) -> Any:
    from launch_ros.actions import Node

    (found,) = (m for m in made if isinstance(m, Node) and m.node_executable == executable)
    return found


def command(launch_file: ModuleType, **arguments: str) -> list[str]:
    """The node's command line but for its executable, which need not be installed."""
    from launch.utilities import perform_substitutions

    context, made = processes(launch_file, **arguments)
    action = node(made, "anomaly_detector_node")
    action._perform_substitutions(context)  # what Node.execute does before it starts the process
    context.extend_locals({"ros_specific_arguments": {"name": "NAME", "ns": "NAMESPACE"}})
    return [perform_substitutions(context, part) for part in action.cmd[1:]]


def overrides(launch_file: ModuleType, **arguments: str) -> tuple[str, dict[str, Any]]:
    """Which node the arguments' parameters are for, and the parameters as it will read them."""
    words = command(launch_file, **arguments)
    files = [words[i + 1] for i, word in enumerate(words) if word == "--params-file"]
    # launch_ros writes lists as tuples; rcl's reader ignores the tag.
    text = Path(files[-1]).read_text().replace("!!python/tuple", "")
    ((name, content),) = yaml.safe_load(text).items()
    return name, content["ros__parameters"]


def environment(action: Any, context: Any) -> dict[str, str]:
    from launch.utilities import perform_substitutions

    return {
        perform_substitutions(context, name): perform_substitutions(context, value)
        for name, value in action.additional_env or []
    }


def test_declares_every_argument_with_text_and_default(launch_file: ModuleType):
    declared = {
        argument.name: argument
        for argument in launch_file.generate_launch_description().get_launch_arguments()
    }
    assert set(declared) == {
        *parameters_of_file(),
        "params_file",
        "namespace",
        "use_sim_time",
        "log_level",
        "fastdds_profile",
        "rviz",
    }
    for argument in declared.values():
        assert argument.description
        assert argument.default_value is not None, argument.name


def test_default_files_exist(launch_file: ModuleType):
    context, _ = processes(launch_file)
    for name in ("params_file", "fastdds_profile"):
        assert Path(context.launch_configurations[name]).is_file()
    assert (share_dir("config") / "anomaly_detector.rviz").is_file()


def test_the_parameter_file_alone_rules_by_default(launch_file: ModuleType):
    name, parameters = overrides(launch_file)
    assert name == "/anomaly_detector"
    assert parameters == {"use_sim_time": False}
    assert str(share_dir("config") / "anomaly_detector.yaml") in command(launch_file)


def test_arguments_become_parameters_that_the_node_accepts(launch_file: ModuleType):
    name, parameters = overrides(
        launch_file,
        namespace="robot",
        cameras="[front, 'on']",
        image_transport="compressed",
        profile="7",
        device="cpu",
        threshold="1",
        use_sim_time="true",
    )
    assert name == "/robot/anomaly_detector"
    assert parameters == {
        "cameras": ["front", "on"],
        "image_transport": "compressed",
        "profile": "7",
        "device": "cpu",
        "threshold": 1.0,
        "use_sim_time": True,
    }
    del parameters["use_sim_time"]
    assert [problem(*parameter) for parameter in parameters.items()] == [None] * len(parameters)


def test_one_camera_needs_no_brackets(launch_file: ModuleType):
    assert overrides(launch_file, cameras="front")[1]["cameras"] == ["front"]


@pytest.mark.parametrize("wrong", [{"threshold": "high"}, {"cameras": "[1, 2]"}])
def test_what_is_not_of_the_type_is_refused(launch_file: ModuleType, wrong: dict[str, str]):
    with pytest.raises(ValueError, match=r"high|1, 2"):
        overrides(launch_file, **wrong)


def test_log_level_reaches_the_node(launch_file: ModuleType):
    words = command(launch_file, log_level="debug")
    assert words[words.index("--log-level") + 1] == "debug"


def test_environment_is_the_processes_own(launch_file: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launch_file, "shared_memory_suffices", lambda: True)
    context, made = processes(launch_file)
    expected = dict.fromkeys(FASTDDS, str(share_dir("config") / "fastdds.xml"))
    assert environment(node(made, "rviz2"), context) == expected
    expected |= launch_file.ALLOCATOR
    assert environment(node(made, "anomaly_detector_node"), context) == expected
    assert not set(expected) & set(context.environment)


@pytest.mark.parametrize("small", [False, True], ids=["not wanted", "small /dev/shm"])
def test_fast_dds_is_left_alone(
    launch_file: ModuleType, monkeypatch: pytest.MonkeyPatch, small: bool
):
    monkeypatch.setattr(launch_file, "shared_memory_suffices", lambda: not small)
    context, made = processes(launch_file, **({} if small else {"fastdds_profile": ""}))
    assert environment(node(made, "anomaly_detector_node"), context) == launch_file.ALLOCATOR
    assert [type(m).__name__ for m in made] == ["LogInfo"] * small + ["Node", "Node"]


def test_the_systems_fast_dds_profile_stays(
    launch_file: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(FASTDDS[0], "/etc/site.xml")
    context, _ = processes(load())
    assert context.launch_configurations["fastdds_profile"] == "/etc/site.xml"


@pytest.mark.parametrize("wanted", [False, True])
def test_rviz_starts_on_demand_and_first(launch_file: ModuleType, wanted: bool):
    from launch_ros.actions import Node

    context, made = processes(launch_file, rviz=str(wanted).lower())
    first = next(m for m in made if isinstance(m, Node))
    assert first is node(made, "rviz2")
    assert first.condition.evaluate(context) == wanted
    assert node(made, "anomaly_detector_node").condition is None


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
