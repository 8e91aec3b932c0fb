"""The launch files: their arguments and the processes that they come to.

What a description comes to needs launch and launch_ros, which a ROS installation carries.
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from anomaly_detector_ros.ros.parameter_files import launch_arguments
from anomaly_detector_ros.ros.parameters import BY_NAME, problem
from anomaly_detector_ros.runtime import environment as image_environment
from anomaly_detector_ros.runtime.environment import ALLOCATOR, FASTDDS
from anomaly_detector_ros.runtime.resources import share_dir

DETECTOR = "anomaly_detector.launch.py"
NODE = "anomaly_detector_node"
ARGUMENTS = {
    "params_file",
    "namespace",
    "use_sim_time",
    "log_level",
    "enclave",
    "respawn",
    "fastdds_profile",
    "rviz",
    "foxglove",
    "foxglove_port",
    "foxglove_address",
}


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No Fast DDS profile but the package's, room for it, and launch_ros's files in tmp_path."""
    for name in FASTDDS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(image_environment, "shared_memory_suffices", lambda: True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def load(name: str = DETECTOR) -> ModuleType:
    """A launch file as a module; skips the test where launch is missing."""
    pytest.importorskip("launch.actions", reason="launch is not installed")
    pytest.importorskip("launch_ros.actions", reason="launch_ros is not installed")
    spec = importlib.util.spec_from_file_location("launch_file", share_dir("launch") / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# A process's action, its command line but for the executable, and what its environment gains.
Process = tuple[Any, list[str], dict[str, str]]


def visit(entities: Any, context: Any, **arguments: str) -> list[Process]:
    """The processes that entities come to, at once or after an event; none is started."""
    from launch.actions import ExecuteProcess, RegisterEventHandler

    context.launch_configurations.update(arguments)
    found: list[Process] = []
    for entity in entities:
        if isinstance(entity, ExecuteProcess):
            if entity.condition is None or entity.condition.evaluate(context):
                found.append((entity, command(entity, context), environment(entity, context)))
        elif isinstance(entity, RegisterEventHandler):
            found += visit(entity.event_handler.entities, context)
        else:
            found += visit(entity.visit(context) or [], context)
    return found


def processes(name: str = DETECTOR, **arguments: str) -> dict[str, Process]:
    """What :func:`visit` finds in a launch file, by executable or process name."""
    module = load(name)
    from launch import LaunchContext
    from launch_ros.actions import Node

    context = LaunchContext()
    before = dict(context.environment)
    found = visit([module.generate_launch_description()], context, **arguments)
    names = [a.node_executable if isinstance(a, Node) else "bag" for a, _, _ in found]
    assert dict(context.environment) == before  # launch files that include this one keep theirs
    keys = [
        f"{n} {names[:i].count(n) + 1}" if names[:i].count(n) else n for i, n in enumerate(names)
    ]
    return dict(zip(keys, found, strict=True))


def command(action: Any, context: Any) -> list[str]:
    """The command line but for the executable, as Node.execute makes it."""
    from launch.utilities import perform_substitutions
    from launch_ros.actions import Node

    if isinstance(action, Node):
        action._perform_substitutions(context)
        context.extend_locals({"ros_specific_arguments": {"name": "NAME", "ns": "NAMESPACE"}})
    words = [perform_substitutions(context, part) for part in action.cmd[1:]]
    if isinstance(action, Node):
        # The rules of SetRemap and of the namespace come as locals when the process starts.
        words += [f"{a}:={b}" for a, b in action.expanded_remapping_rules or []]
    return words


def environment(action: Any, context: Any) -> dict[str, str]:
    from launch.utilities import perform_substitutions

    return {
        perform_substitutions(context, name): perform_substitutions(context, value)
        for name, value in action.additional_env or []
    }


def parameters(words: list[str]) -> tuple[str, dict[str, Any]]:
    """Which node the arguments' parameters are for, and the parameters as it will read them."""
    files = [words[i + 1] for i, word in enumerate(words) if word == "--params-file"]
    # launch_ros writes lists as tuples; rcl's reader ignores the tag.
    text = Path(files[-1]).read_text().replace("!!python/tuple", "")
    ((name, content),) = yaml.safe_load(text).items()
    return name, content["ros__parameters"]


def overrides(name: str = DETECTOR, **arguments: str) -> tuple[str, dict[str, Any]]:
    return parameters(processes(name, **arguments)[NODE][1])


@pytest.mark.parametrize(
    ("name", "own"),
    [
        (DETECTOR, set()),
        ("bag.launch.py", {"bag", "rate", "loop", "remap"}),
        ("two_robots.launch.py", {"first", "second"}),
    ],
)
def test_show_args_lists_every_argument_with_text(name: str, own: set[str]):
    declared = {
        argument.name: argument
        for argument in load(name).generate_launch_description().get_launch_arguments()
    }
    assert set(declared) == {*launch_arguments(), *ARGUMENTS, *own}
    for argument in declared.values():
        assert argument.description
        assert (argument.default_value is None) == (argument.name == "bag")


def test_default_files_exist():
    words = processes()[NODE][1]
    assert Path(words[words.index("--params-file") + 1]).is_file()
    for name in ("anomaly_detector.rviz", "fastdds.xml", "foxglove_layout.json"):
        assert (share_dir("config") / name).is_file()


def test_the_parameter_file_alone_rules_by_default():
    words = processes()[NODE][1]
    assert parameters(words) == ("/anomaly_detector", {"use_sim_time": False})
    assert str(share_dir("config") / "anomaly_detector.yaml") in words


def test_arguments_become_parameters_that_the_node_accepts(tmp_path: Path):
    calibration = tmp_path / "calibration.npz"
    calibration.touch()
    name, given = overrides(
        namespace="robot",
        cameras="[front, 'on']",
        image_transport="compressed",
        profile="7",
        calibration=str(calibration),
        device="cpu",
        threshold="1",
        use_sim_time="true",
    )
    assert name == "/robot/anomaly_detector"
    assert given == {
        "cameras": ["front", "on"],
        "image_transport": "compressed",
        "profile": "7",
        "calibration": str(calibration),
        "device": "cpu",
        "threshold": 1.0,
        "use_sim_time": True,
    }
    del given["use_sim_time"]
    assert [problem(name, BY_NAME[name], value) for name, value in given.items()] == [None] * len(
        given
    )


def test_one_camera_needs_no_brackets():
    assert overrides(cameras="front")[1]["cameras"] == ["front"]


@pytest.mark.parametrize(
    "wrong", [{"threshold": "high"}, {"cameras": "[1, 2]"}, {"foxglove_port": "all"}]
)
def test_what_is_not_of_the_type_is_refused(wrong: dict[str, str]):
    load()
    with pytest.raises(ValueError, match=r"high|1, 2|all"):
        processes(**wrong, foxglove="true")


def test_log_level_reaches_the_node():
    words = processes(log_level="debug")[NODE][1]
    assert words[words.index("--log-level") + 1] == "debug"


def test_the_node_joins_the_enclave_it_is_given():
    words = processes(enclave="/robot1/anomaly_detector")[NODE][1]
    assert words[words.index("--enclave") + 1] == "/robot1/anomaly_detector"
    assert "--enclave" not in processes()[NODE][1]


def test_processes_have_the_environment_that_images_need():
    found = processes(rviz="true", foxglove="true")
    fastdds = dict.fromkeys(FASTDDS, str(share_dir("config") / "fastdds.xml"))
    assert found["rviz2"][2] == fastdds
    assert found["foxglove_bridge"][2] == found[NODE][2] == {**ALLOCATOR, **fastdds}


@pytest.mark.parametrize("small", [False, True], ids=["not wanted", "small /dev/shm"])
def test_fast_dds_is_left_alone(monkeypatch: pytest.MonkeyPatch, small: bool):
    monkeypatch.setattr(image_environment, "shared_memory_suffices", lambda: not small)
    found = processes(**({} if small else {"fastdds_profile": ""}))
    assert found[NODE][2] == ALLOCATOR


def test_the_systems_fast_dds_profile_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(FASTDDS[0], "/etc/site.xml")
    assert set(dict(processes()[NODE][2]).items()) >= {(name, "/etc/site.xml") for name in FASTDDS}


@pytest.mark.parametrize(
    ("argument", "viewer"), [("rviz", "rviz2"), ("foxglove", "foxglove_bridge")]
)
def test_viewers_start_on_demand_and_first(argument: str, viewer: str):
    assert list(processes()) == [NODE]
    assert list(processes(**{argument: "true"})) == [viewer, NODE]


def test_foxglove_bridge_listens_where_it_is_told():
    found = processes(foxglove="true", foxglove_port="9000", foxglove_address="127.0.0.1")
    _, given = parameters(found["foxglove_bridge"][1])
    assert given == {"port": 9000, "address": "127.0.0.1", "use_sim_time": False}


def test_the_node_can_be_started_again_whenever_it_ends():
    from_launch = {value: processes(respawn=value)[NODE][0] for value in ("true", "false")}
    for value, action in from_launch.items():
        assert action._ExecuteLocal__respawn[0].variable_name[0].text == "respawn", value
        assert action._ExecuteLocal__respawn_delay == 2.0


def test_a_bag_is_played_in_its_own_time(tmp_path: Path):
    bag = tmp_path / "drive.mcap"
    bag.touch()
    found = processes("bag.launch.py", bag=str(bag), rate="0.5", cameras="front")
    assert parameters(found[NODE][1])[1] == {"use_sim_time": True, "cameras": ["front"]}
    assert found["bag"][1] == (
        [
            "bag",
            "play",
            str(bag),
            "--clock",
            "100.0",
            "--rate",
            "0.5",
            "--disable-keyboard-controls",
        ]
    )
    assert found["bag"][2] == found[NODE][2]


def test_a_bag_is_looped_and_its_topics_renamed(tmp_path: Path):
    words = processes(
        "bag.launch.py", bag=str(tmp_path), loop="true", remap="/a:=/camera/image_raw /b:=/c"
    )["bag"][1]
    assert "--loop" in words
    assert words[words.index("--remap") + 1 :] == ["/a:=/camera/image_raw", "/b:=/c"]


def test_a_bag_waits_for_the_node(tmp_path: Path):
    """The handler that starts the player matches the transition to active, and only the first."""
    module = load("bag.launch.py")
    from launch import LaunchContext
    from launch.actions import RegisterEventHandler
    from launch_ros.events.lifecycle import StateTransition

    context = LaunchContext()
    context.launch_configurations.update(
        {name: default or str(tmp_path) for name, (default, _) in module.ARGUMENTS.items()},
        fastdds_profile="",
    )
    (register,) = module.play(context)
    assert isinstance(register, RegisterEventHandler)
    handler = register.event_handler
    assert handler.handle_once
    for state in ("inactive", "active"):
        assert handler.matches(transition_to(StateTransition, state)) == (state == "active")


def transition_to(event: type, state: str) -> Any:
    from lifecycle_msgs.msg import State, TransitionEvent

    return event(action=None, msg=TransitionEvent(goal_state=State(label=state)))


def test_a_bag_that_does_not_exist_is_named(tmp_path: Path):
    load()
    with pytest.raises(RuntimeError, match=r"no\.mcap' does not exist"):
        processes("bag.launch.py", bag=str(tmp_path / "no.mcap"))


@pytest.mark.parametrize("code", [0, 1])
def test_a_bag_that_cannot_be_played_ends_the_launch(code: int):
    from_launch = load("bag.launch.py")
    from launch.actions import Shutdown
    from launch.events.process import ProcessExited

    event = ProcessExited(action=None, name="", cmd=[], cwd=None, env=None, pid=1, returncode=code)
    after = from_launch.after(event, None)
    assert [type(action) for action in after] == [Shutdown] * code


def test_two_robots_share_nothing_but_the_machine():
    found = processes("two_robots.launch.py", second="beta", device="cpu", foxglove="true")
    assert list(found) == ["foxglove_bridge", NODE, f"{NODE} 2"]
    for key, robot in ((NODE, "robot1"), (f"{NODE} 2", "beta")):
        name, given = parameters(found[key][1])
        assert name == f"/{robot}/anomaly_detector"
        assert given == {"use_sim_time": False, "device": "cpu"}
        assert {"/tf:=tf", "/tf_static:=tf_static"} <= set(found[key][1])


@pytest.mark.parametrize("own", ["", "camera_unit"])
def test_namespaces_of_launch_files_that_include_this_one_add_up(own: str):
    description = load().generate_launch_description()
    from launch import LaunchContext
    from launch_ros.actions import PushRosNamespace

    context = LaunchContext()
    found = visit([PushRosNamespace("robot"), description], context, namespace=own)
    ((_, words, _),) = (f for f in found if f[0].node_executable == NODE)
    assert parameters(words)[0] == f"/robot/{own}/anomaly_detector".replace("//", "/")
