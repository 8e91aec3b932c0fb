"""The node's parameters about obstacles, the costmap and where cameras are."""

from __future__ import annotations

from anomaly_detector_ros.ros.parameter_spec import Spec

MAPPING: tuple[Spec, ...] = (
    Spec(
        "base_frame",
        "base_link",
        "The robot's base frame: x forward, y left, z up.",
        constraints="not empty",
    ),
    Spec(
        "obstacles.source",
        "auto",
        "Where distances come from. depth: <camera>/depth, registered to the image; ground: where "
        "an obstacle stands on flat ground, by camera_info and the camera's pose; auto: depth "
        "where a depth image matches, else ground.",
        constraints="auto, depth or ground",
    ),
    Spec(
        "obstacles.max_range",
        15.0,
        "Points further from the camera than so many metres are left out.",
        minimum=0.1,
        maximum=200.0,
        live=True,
    ),
    Spec(
        "obstacles.voxel_size",
        0.1,
        "One point is kept in each cube of so many metres; 0: every pixel is a point.",
        minimum=0.0,
        maximum=2.0,
        live=True,
    ),
    Spec(
        "obstacles.min_pixels",
        25,
        "Connected anomalies of fewer pixels are no obstacles.",
        minimum=1,
        maximum=1000000,
        live=True,
    ),
    Spec(
        "obstacles.standing",
        True,
        "Without depth, take anomalies for things that stand on the ground; false: for patches "
        "of the ground, such as puddles.",
        live=True,
    ),
    Spec(
        "obstacles.ground_z",
        0.0,
        "Height of the ground in base_frame, metres; negative where that is above the ground.",
        minimum=-10.0,
        maximum=10.0,
    ),
    Spec(
        "obstacles.depth_tolerance",
        0.05,
        "A depth image belongs to an image if their stamps differ by no more than so many seconds.",
        minimum=0.0,
        maximum=1.0,
    ),
    Spec(
        "costmap.frame",
        "odom",
        "Frame of ~/costmap: one that does not move with the robot, known to TF. base_frame needs "
        "no TF, but then what was seen moves along with the robot.",
        constraints="not empty",
    ),
    Spec(
        "costmap.size",
        20.0,
        "Edge of ~/costmap in metres.",
        minimum=1.0,
        maximum=200.0,
    ),
    Spec(
        "costmap.resolution",
        0.1,
        "Edge of a cell of ~/costmap in metres.",
        minimum=0.01,
        maximum=10.0,
    ),
    Spec(
        "costmap.decay",
        10.0,
        "Seconds in which evidence in ~/costmap loses half of its weight; 0: it is kept.",
        minimum=0.0,
        maximum=600.0,
    ),
    Spec(
        "costmap.max_height",
        2.0,
        "Points higher above the ground than so many metres do not count in ~/costmap.",
        minimum=0.0,
        maximum=10.0,
    ),
)

POSES: tuple[Spec, ...] = (
    Spec(
        "height",
        0.0,
        "Height of the camera above base_frame's origin, metres, for obstacles without TF; 0: "
        "the camera's pose is that of TF.",
        minimum=0.0,
        maximum=10.0,
        live=True,
    ),
    Spec(
        "roll",
        0.0,
        "Roll of the camera about the robot's forward axis, radians; counts with height.",
        minimum=-3.2,
        maximum=3.2,
        live=True,
    ),
    Spec(
        "pitch",
        0.0,
        "Pitch of the camera, radians, positive downwards; counts with height.",
        minimum=-3.2,
        maximum=3.2,
        live=True,
    ),
    Spec(
        "extrinsics",
        [0.0] * 16,
        "Pose of the camera, base_frame <- optical frame, as a 4x4 matrix row by row; goes before "
        "height, roll and pitch; all zero: not given.",
        constraints="a rotation and a translation, or 16 zeros",
        live=True,
    ),
)
"""Where a camera is; each camera has these of its own."""
