"""Starts the node with shared memory and an allocator that suit camera images.

    ros2 launch anomaly_detector_ros anomaly_detector.launch.py cameras:="[front, rear]" rviz:=true

`ros2 launch anomaly_detector_ros anomaly_detector.launch.py --show-args` lists the arguments.
"""

from __future__ import annotations

import shutil

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

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
ARGUMENTS = {
    "params_file": (str(CONFIG / "anomaly_detector.yaml"), "parameter file"),
    "namespace": ("", "namespace of node and topics"),
    "use_sim_time": ("false", "take the time from /clock, as with 'ros2 bag play --clock'"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
    "fastdds_profile": (
        str(CONFIG / "fastdds.xml"),
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
        DeclareLaunchArgument(name, default_value=default, description=text)
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

    environment = dict(ALLOCATOR)
    profile = argument("fastdds_profile")
    if profile and not shared_memory_suffices():
        notes = [
            LogInfo(msg="/dev/shm has less than 256 MB free: Fast DDS keeps its small segments")
        ]
    else:
        notes = []
    if profile and not notes:
        # The first name is read by Fast DDS 2 (Humble, Jazzy), the second by Fast DDS 3.
        environment["FASTRTPS_DEFAULT_PROFILES_FILE"] = profile
        environment["FASTDDS_DEFAULT_PROFILES_FILE"] = profile
    # launch_ros reads the arguments as YAML, so that a number or a list becomes one.
    overrides = {
        name: LaunchConfiguration(name) for name in (*PARAMETERS, "use_sim_time") if argument(name)
    }
    return [
        *notes,
        *(SetEnvironmentVariable(name, value) for name, value in environment.items()),
        Node(
            package="anomaly_detector_ros",
            executable="anomaly_detector_node",
            name="anomaly_detector",
            namespace=argument("namespace"),
            parameters=[argument("params_file"), overrides],
            arguments=["--ros-args", "--log-level", argument("log_level")],
            output="screen",
        ),
        Node(
            package="rviz2",
            executable="rviz2",
            namespace=argument("namespace"),
            arguments=["-d", str(CONFIG / "anomaly_detector.rviz")],
            condition=IfCondition(LaunchConfiguration("rviz")),
        ),
    ]
