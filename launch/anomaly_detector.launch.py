"""Starts the node with shared memory and an allocator that suit camera images.

    ros2 launch anomaly_detector_ros anomaly_detector.launch.py cameras:="[front, rear]" rviz:=true

`ros2 launch anomaly_detector_ros anomaly_detector.launch.py --show-args` lists the arguments. Other
launch files may include this one; its namespace adds to theirs.
"""

from __future__ import annotations

from collections.abc import Callable

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, TextSubstitution
from launch_ros.actions import LifecycleNode, Node
from launch_ros.parameter_descriptions import ParameterValue

from anomaly_detector_ros.ros.parameter_files import launch_arguments
from anomaly_detector_ros.runtime.environment import ALLOCATOR, fastdds_environment, fastdds_profile
from anomaly_detector_ros.runtime.resources import share_dir

CONFIG = share_dir("config")

# Node parameters that are arguments too. An empty argument leaves the parameter file's value.
PARAMETERS = launch_arguments()
ARGUMENTS = {
    "params_file": (CONFIG / "anomaly_detector.yaml", "parameter file"),
    "namespace": ("", "namespace of node and topics"),
    "use_sim_time": ("false", "take the time from /clock, as with 'ros2 bag play --clock'"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
    "enclave": ("", "SROS2 enclave of the node, as in /robot1/anomaly_detector; empty: /"),
    "respawn": ("false", "start the node again, 2 s later, whenever its process ends"),
    "fastdds_profile": (
        fastdds_profile(),
        "Fast DDS profile for large shared memory; empty: leave Fast DDS as it is",
    ),
    "rviz": ("false", "start RViz with the package's configuration"),
    "foxglove": (
        "false",
        "start foxglove_bridge; import config/foxglove_layout.json in Foxglove and connect to it",
    ),
    "foxglove_port": ("8765", "TCP port of foxglove_bridge"),
    "foxglove_address": (
        "0.0.0.0",
        "address foxglove_bridge listens on, without a password; 127.0.0.1: this machine only",
    ),
}


def generate_launch_description() -> LaunchDescription:
    declared = [
        DeclareLaunchArgument(name, default_value=str(default), description=text)
        for name, (default, text) in ARGUMENTS.items()
    ]
    declared += [
        DeclareLaunchArgument(
            name, default_value="", description=f"{text} Not given: as in the parameter file."
        )
        for name, (_, text) in PARAMETERS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The processes and their environment, once the arguments have values."""

    def argument(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    fastdds = fastdds_environment(argument("fastdds_profile"))
    notes = []
    if argument("fastdds_profile") and not fastdds:
        notes = [
            LogInfo(msg="/dev/shm has less than 256 MB free: Fast DDS keeps its small segments")
        ]
    overrides = parameters(argument)
    sim_time = {"use_sim_time": overrides["use_sim_time"]}
    enclave = ["--enclave", argument("enclave")] if argument("enclave") else []
    port = ParameterValue(LaunchConfiguration("foxglove_port"), value_type=int)
    # Environments are the processes' own: launch files that include this one keep theirs. The
    # viewers are first, since launch leaves running what it started before it finds that a package
    # is missing.
    return [
        *notes,
        Node(
            package="rviz2",
            executable="rviz2",
            namespace=argument("namespace"),
            parameters=[sim_time],
            arguments=["-d", str(CONFIG / "anomaly_detector.rviz")],
            additional_env=fastdds,
            condition=IfCondition(LaunchConfiguration("rviz")),
        ),
        Node(
            package="foxglove_bridge",
            executable="foxglove_bridge",
            namespace=argument("namespace"),
            parameters=[{"port": port, "address": argument("foxglove_address"), **sim_time}],
            additional_env={**ALLOCATOR, **fastdds},
            condition=IfCondition(LaunchConfiguration("foxglove")),
        ),
        # A LifecycleNode, so that launch files that include this one can wait for its states.
        LifecycleNode(
            package="anomaly_detector_ros",
            executable="anomaly_detector_node",
            name="anomaly_detector",
            namespace=argument("namespace"),
            parameters=[argument("params_file"), overrides],
            arguments=["--ros-args", "--log-level", argument("log_level"), *enclave],
            additional_env={**ALLOCATOR, **fastdds},
            respawn=LaunchConfiguration("respawn"),
            respawn_delay=2.0,
            output="screen",
        ),
    ]


def parameters(argument: Callable[[str], str]) -> dict[str, ParameterValue]:
    """The node's parameters that were given as arguments, each of its own type."""
    given = {name: argument(name) for name in PARAMETERS if argument(name)}
    if not given.get("cameras", "[").startswith("["):
        given["cameras"] = f"[{given['cameras']}]"  # cameras:=front is a list of one

    def typed(text: str, value_type: type) -> ParameterValue:
        return ParameterValue(TextSubstitution(text=text), value_type=value_type)

    return {
        **{name: typed(text, PARAMETERS[name][0]) for name, text in given.items()},
        "use_sim_time": typed(argument("use_sim_time"), bool),
    }
