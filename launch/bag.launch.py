"""Replays a bag through the node, in the bag's time.

    ros2 launch anomaly_detector_ros bag.launch.py bag:=drive.mcap rate:=0.5 rviz:=true

The bag starts once the node has loaded its models and is active. What the node publishes is not
kept: `anomaly-detector bag` writes it into a new bag, frame by frame, without a ROS graph.
"""

from __future__ import annotations

from pathlib import Path

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
)
from launch.events.process import ProcessExited
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.event_handlers import OnStateTransition

from anomaly_detector_ros.runtime.environment import ALLOCATOR, fastdds_environment
from anomaly_detector_ros.runtime.resources import share_dir

DETECTOR = share_dir("launch") / "anomaly_detector.launch.py"
ARGUMENTS = {
    "bag": (None, "the bag: a folder or an .mcap or .db3 file"),
    "rate": ("1.0", "speed of the replay; below 1 gives the models more time for each frame"),
    "loop": ("false", "begin again at the end"),
    "remap": (
        "",
        "topics of the bag to play under other names, as in '/cam0/image:=/camera/image_raw'; "
        "spaces between several",
    ),
}
CLOCK_RATE = 100.0  # Hz of /clock in the bag's time


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value=default, description=text)
                for name, (default, text) in ARGUMENTS.items()
            ),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(DETECTOR)),
                launch_arguments={"use_sim_time": "true"}.items(),
            ),
            OpaqueFunction(function=play),
        ]
    )


def play(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The player, to be started when the node is active for the first time."""

    def argument(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    bag = Path(argument("bag")).expanduser()
    if not bag.exists():
        raise RuntimeError(f"bag '{bag}' does not exist: give the path of one with bag:=PATH")
    command = ["ros2", "bag", "play", str(bag)]
    command += ["--clock", str(CLOCK_RATE), "--rate", argument("rate")]
    command += ["--disable-keyboard-controls"]
    if argument("loop").lower() in ("true", "1"):
        command += ["--loop"]
    if argument("remap"):
        command += ["--remap", *argument("remap").split()]
    player = ExecuteProcess(
        cmd=command,
        name="bag_player",
        additional_env={**ALLOCATOR, **fastdds_environment(argument("fastdds_profile"))},
        output="screen",
        on_exit=after,
    )
    active = OnStateTransition(goal_state="active", entities=[player], handle_once=True)
    return [RegisterEventHandler(active)]


def after(event: ProcessExited, _context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """At the bag's end the viewers keep the last frame; a bag that cannot be played ends all."""
    if event.returncode == 0:
        return []
    return [Shutdown(reason=f"'ros2 bag play' ended with code {event.returncode}")]
