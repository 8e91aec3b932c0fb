"""Starts the node with shared memory and an allocator that suit camera images.

    ros2 launch anomaly_detector_ros anomaly_detector.launch.py cameras:="[front, rear]" rviz:=true

`ros2 launch anomaly_detector_ros anomaly_detector.launch.py --show-args` lists the arguments.
"""

from __future__ import annotations

import os
import shutil

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, TextSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from anomaly_detector_ros.resources import share_dir

CONFIG = share_dir("config")

# Node parameters that are arguments too. An empty argument leaves the parameter file's value.
PARAMETERS = {
    "cameras": "names of the cameras, as in '[front, rear]'",
    "image_transport": "raw or compressed",
    "profile": "models and settings to detect with",
    "device": "auto, cpu, cuda or cuda:N",
    "threshold": "heatmap value from which a pixel is an anomaly, 0 to 1; -1: the profile's own",
}
# Without a type, launch_ros guesses one: threshold:=1 becomes an integer, which the node refuses,
# and profile:=7 a number. What is not here is text.
TYPES = {"cameras": list[str], "threshold": float, "use_sim_time": bool}
# The first name is read by Fast DDS 2 (Humble, Jazzy), the second by Fast DDS 3.
FASTDDS = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
ARGUMENTS = {
    "params_file": (CONFIG / "anomaly_detector.yaml", "parameter file"),
    "namespace": ("", "namespace of node and topics"),
    "use_sim_time": ("false", "take the time from /clock, as with 'ros2 bag play --clock'"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
    "fastdds_profile": (
        # A profile that is in force for the whole system stays in force.
        next((os.environ[name] for name in FASTDDS if name in os.environ), CONFIG / "fastdds.xml"),
        "Fast DDS profile for large shared memory; empty: leave Fast DDS as it is",
    ),
    "rviz": ("false", "start RViz with the package's configuration"),
}
# glibc returns large blocks to the system by default and pays for each image in page faults.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_ARENA_MAX": "1",
}


def generate_launch_description() -> LaunchDescription:
    declared = [
        DeclareLaunchArgument(name, default_value=str(default), description=text)
        for name, (default, text) in ARGUMENTS.items()
    ]
    declared += [
        DeclareLaunchArgument(
            name, default_value="", description=f"{text}; empty: as in the parameter file"
        )
        for name, text in PARAMETERS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])


def shared_memory_suffices() -> bool:
    """Whether four processes' segments fit; containers often have 64 MB in all."""
    try:
        return shutil.disk_usage("/dev/shm").free >= 4 * 64 * 2**20
    except OSError:
        return False


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The processes and their environment, once the arguments have values."""

    def argument(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    notes, fastdds = [], {}
    if argument("fastdds_profile") and shared_memory_suffices():
        fastdds = dict.fromkeys(FASTDDS, argument("fastdds_profile"))
    elif argument("fastdds_profile"):
        notes = [
            LogInfo(msg="/dev/shm has less than 256 MB free: Fast DDS keeps its small segments")
        ]
    given = {name: argument(name) for name in PARAMETERS if argument(name)}
    given["use_sim_time"] = argument("use_sim_time")
    if not given.get("cameras", "[").startswith("["):
        given["cameras"] = f"[{given['cameras']}]"  # cameras:=front is a list of one
    overrides = {
        name: ParameterValue(TextSubstitution(text=value), value_type=TYPES.get(name, str))
        for name, value in given.items()
    }
    # Environments are the processes' own: launch files that include this one keep theirs. RViz is
    # first, since launch leaves running what it started before it finds that a package is missing.
    return [
        *notes,
        Node(
            package="rviz2",
            executable="rviz2",
            namespace=argument("namespace"),
            parameters=[{"use_sim_time": overrides["use_sim_time"]}],
            arguments=["-d", str(CONFIG / "anomaly_detector.rviz")],
            additional_env=fastdds,
            condition=IfCondition(LaunchConfiguration("rviz")),
        ),
        Node(
            package="anomaly_detector_ros",
            executable="anomaly_detector_node",
            name="anomaly_detector",
            namespace=argument("namespace"),
            parameters=[argument("params_file"), overrides],
            arguments=["--ros-args", "--log-level", argument("log_level")],
            additional_env={**ALLOCATOR, **fastdds},
            output="screen",
        ),
    ]
