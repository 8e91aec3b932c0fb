"""Two robots on one machine, as in a simulation: the same node in two namespaces.

    ros2 launch anomaly_detector_ros two_robots.launch.py first:=alpha second:=beta device:=cuda:0

All other arguments are those of anomaly_detector.launch.py and hold for both. Each robot has its
topics below its name, and so its transforms, as Nav2 has them (<robot>/tf); /clock and /diagnostics
are common. For robots that differ, copy this file and give each its launch_arguments.
"""

from __future__ import annotations

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import PushRosNamespace, SetRemap

from anomaly_detector_ros.runtime.resources import share_dir

DETECTOR = share_dir("launch") / "anomaly_detector.launch.py"


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "first", default_value="robot1", description="first robot's name"
            ),
            DeclareLaunchArgument("second", default_value="robot2", description="second robot's"),
            robot("first"),
            # One foxglove_bridge shows all topics of the graph, and two would want one port.
            robot("second", foxglove="false"),
        ]
    )


def robot(name: str, **arguments: str) -> GroupAction:
    """The node in the namespace that the argument `name` gives, with arguments of its own."""
    return GroupAction(
        [
            PushRosNamespace(LaunchConfiguration(name)),
            SetRemap("/tf", "tf"),
            SetRemap("/tf_static", "tf_static"),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(DETECTOR)), launch_arguments=arguments.items()
            ),
        ]
    )
