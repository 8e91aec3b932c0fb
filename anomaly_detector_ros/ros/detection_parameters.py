"""The node's parameters about its cameras, models and images."""

from __future__ import annotations

from anomaly_detector_ros.profiles import DEFAULT_PROFILE
from anomaly_detector_ros.ros.parameter_spec import Spec

PROFILE_THRESHOLD = -1.0
"""Value of the parameter ``threshold`` that stands for the profile's own."""
OF_THE_NODE = -1.0
"""Value of a camera's own number that stands for the node's parameter of that name."""

DETECTION: tuple[Spec, ...] = (
    Spec(
        "autostart",
        True,
        "Configure and activate by itself at start; false leaves it to a lifecycle manager.",
        read_only=True,
    ),
    Spec(
        "cameras",
        ["camera"],
        "Names of the cameras: images are read from <camera>/image_raw, outputs published under "
        "~/<camera>/.",
        constraints="at least one relative topic name, none twice",
    ),
    Spec(
        "image_transport",
        "raw",
        "raw: <camera>/image_raw is read; compressed: <camera>/image_raw/compressed.",
        constraints="raw or compressed",
    ),
    Spec(
        "profile",
        DEFAULT_PROFILE,
        "Models and settings to detect with: the name of a profile or the path of a YAML file.",
        constraints="a name in profiles.yaml, or a path that ends in .yaml",
    ),
    Spec(
        "models_dir",
        "",
        "Directory with a profiles.yaml to use in place of the installed one; empty: installed.",
        constraints="empty or an existing directory",
    ),
    Spec(
        "calibration",
        "",
        "Calibration file, as anomaly-detector calibrate writes it; empty: the profile's own, if "
        "it has one.",
        constraints="empty or an existing file",
    ),
    Spec(
        "calibration_frames",
        30,
        "Frames of each camera that ~/calibrate takes as nominal.",
        minimum=2,
        maximum=100_000,
        live=True,
    ),
    Spec(
        "calibration_output",
        "",
        "File that ~/calibrate writes, to be given as calibration at the next start; empty: "
        "<node>_calibration.safetensors in $ROS_HOME or ~/.ros.",
        live=True,
    ),
    Spec(
        "drift_window",
        60,
        "Frames of each camera, at most one a second, that are compared with the nominal ones to "
        "tell whether the scene still is that of the calibration.",
        minimum=10,
        maximum=3600,
    ),
    Spec(
        "device",
        "auto",
        "Device the models run on; auto: CUDA where there is one.",
        constraints="auto, cpu, cuda or cuda:N",
    ),
    Spec(
        "offline",
        False,
        "Never fetch missing models from the network; configuring fails instead.",
    ),
    Spec(
        "threshold",
        PROFILE_THRESHOLD,
        "Heatmap value from which a pixel of the mask is an anomaly; -1: the profile's own.",
        minimum=-1.0,
        maximum=1.0,
        constraints="0 to 1, or -1",
        live=True,
    ),
    Spec(
        "max_input_age",
        1.0,
        "Images older than this many seconds when their turn comes are dropped and counted; 0: "
        "none is. Age is the node's clock minus the header's stamp. Where the stamp cannot be of "
        "the node's clock (zero, in the future, or over 10 s and over twice this limit old on "
        "arrival, as in a bag replayed without simulated time) it is the time since arrival.",
        minimum=0.0,
        maximum=60.0,
        live=True,
    ),
    Spec(
        "max_rate",
        0.0,
        "Most images per second and camera that are processed; 0: as many as the device manages.",
        minimum=0.0,
        maximum=100.0,
        live=True,
    ),
    Spec(
        "batch_cameras",
        False,
        "Process one image of every camera that has one waiting together, in one batch: more "
        "images per second on a GPU, each of them later.",
        live=True,
    ),
    Spec(
        "temporal_filter",
        0.0,
        "Time constant in seconds of an exponential average of the heatmaps of each camera, by "
        "their stamps; 0: off. It knows nothing of the camera's motion and smears while it moves.",
        minimum=0.0,
        maximum=10.0,
        live=True,
    ),
    Spec(
        "skip_similar",
        0.0,
        "Images that hardly differ from the last one processed take over what was found there, at "
        "most 10 in a row: the largest change of the mean grey value (0 to 255) of any of 64x36 "
        "cells that still counts as none; noise makes about 1, 4 is a start; 0: all are processed.",
        minimum=0.0,
        maximum=255.0,
        live=True,
    ),
    Spec(
        "watchdog_timeout",
        60.0,
        "Seconds that the models may work on one image, or one batch; then their thread is given "
        "up and another one started with fresh models; 0: any time.",
        minimum=0.0,
        maximum=600.0,
        live=True,
    ),
    Spec(
        "jpeg_quality",
        90,
        "JPEG quality of overlay/compressed.",
        minimum=1,
        maximum=100,
        live=True,
    ),
)

OVERRIDES: tuple[Spec, ...] = (
    Spec(
        "image_transport",
        "",
        "This camera's image_transport; empty: the node's.",
        constraints="empty, raw or compressed",
    ),
    Spec(
        "calibration",
        "",
        "This camera's calibration file; empty: the node's.",
        constraints="empty or an existing file",
    ),
    Spec(
        "threshold",
        OF_THE_NODE,
        "This camera's threshold; -1: the node's.",
        minimum=-1.0,
        maximum=1.0,
        constraints="0 to 1, or -1",
        live=True,
    ),
    Spec(
        "max_rate",
        OF_THE_NODE,
        "This camera's max_rate; 0: no limit; -1: the node's.",
        minimum=-1.0,
        maximum=100.0,
        constraints="0 or more, or -1",
        live=True,
    ),
)
"""What a camera may have of its own; each default stands for the node's parameter of that name."""
