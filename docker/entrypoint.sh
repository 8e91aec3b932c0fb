#!/bin/bash
# Makes ROS and the virtual environment known, then runs the command in this process's place, so that
# it gets the signals.
set -e
# shellcheck source=/dev/null
source "/opt/ros/$ROS_DISTRO/setup.bash"
site_packages=("$VIRTUAL_ENV"/lib/python3*/site-packages)
export AMENT_PREFIX_PATH="$VIRTUAL_ENV:$AMENT_PREFIX_PATH"
# `ros2` runs on the system's Python, whose launch files import the package.
export PYTHONPATH="${site_packages[0]}:$PYTHONPATH"
exec "$@"
