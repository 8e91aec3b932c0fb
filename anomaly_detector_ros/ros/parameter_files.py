"""What is made of the table of parameters: the parameter file, its documentation, launch arguments.

``python -m anomaly_detector_ros.ros.parameter_files`` in a checkout writes the files anew. No
rclpy.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from anomaly_detector_ros.ros.parameters import (
    CAMERA_SPECS,
    SECTIONS,
    SPECS,
    Spec,
    camera_parameter,
)

COMMAND = "python -m anomaly_detector_ros.ros.parameter_files"
_WIDTH = 100

_YAML_HEAD = f"""\
# Parameters of the node anomaly_detector, at their defaults.
# Written by {COMMAND}: change them in its table.
# Use: ros2 launch anomaly_detector_ros anomaly_detector.launch.py params_file:=THIS_FILE
# Those marked (live) may change at any time, the others only while the node is unconfigured.
/**:
  ros__parameters:
"""
_YAML_QOS = """
    # QoS of a topic, by its full name, if it must differ from the default (inputs BEST_EFFORT,
    # outputs RELIABLE, both KEEP_LAST with depth 1). Only at start.
    # qos_overrides:
    #   /camera/image_raw:
    #     subscription:
    #       reliability: reliable
    #       depth: 5

    # What each camera has of its own, by its name; a slash in the name becomes a dot, so a level
    # here. At their defaults, of a camera rear/left:
    #
    # rear:
    #   left:
"""
_MARKDOWN_HEAD = f"""\
# Parameters of the node

<!-- Written by {COMMAND}. -->

`config/anomaly_detector.yaml` holds all of them at their defaults. `ros2 param describe` shows the
same texts. *live*: may change at any time; *start*: only when the node starts; the others may
change while the node is unconfigured. A value that is out of range or of another type is refused
with the reason; an integer is taken for a number. A name that no parameter has and a parameter file
for another node are warned of at start.
"""
_MARKDOWN_CAMERAS = f"""
## Of each camera

A camera has these of its own, below its name with a dot for each slash:
`{camera_parameter("rear/left", "threshold")}` is the threshold of the camera `rear/left`.

"""
_MARKDOWN_QOS = """
## Quality of service

Inputs are BEST_EFFORT, outputs RELIABLE, both KEEP_LAST with depth 1; `~/costmap` and `label_info`
are TRANSIENT_LOCAL, too. `qos_overrides.<topic>.<publisher or subscription>.<policy>`, with the
topic's full name and one of history, depth, reliability and durability, changes that at start.
The log and `/diagnostics` name every topic whose QoS does not match, with the remedy.
"""


def parameter_file() -> str:
    """``config/anomaly_detector.yaml``: every parameter with its text, at its default."""
    parts = [_YAML_HEAD]
    for section in SECTIONS.values():
        group = ""
        for spec in section:
            prefix, _, name = spec.name.rpartition(".")
            if prefix != group:
                parts.append(f"    {prefix}:\n")
                group = prefix
            parts.append(_entry(spec, name, "      " if group else "    "))
        parts.append("\n")
    entries = "".join(_entry(spec, spec.name, "    ") for spec in CAMERA_SPECS)
    example = textwrap.indent(entries, "    # ", lambda line: True)
    return "".join(parts).rstrip("\n") + "\n" + _YAML_QOS + example


def _entry(spec: Spec, name: str, indent: str) -> str:
    when = " (live)." if spec.live else " (only at start)." if spec.read_only else "."
    text = spec.text.removesuffix(".") + when
    start = f"{indent}# "
    lines = textwrap.wrap(
        text, _WIDTH, initial_indent=start, subsequent_indent=start, break_on_hyphens=False
    )
    return "\n".join([*lines, f"{indent}{name}: {_yaml(spec.default)}", ""])


def _yaml(value: Any) -> str:
    """A value as YAML on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    text = text.removesuffix("...\n").strip()
    return '""' if value == "" else text


def documentation() -> str:
    """``docs/parameters.md``: a table of each section."""
    parts = [_MARKDOWN_HEAD]
    for title, section in SECTIONS.items():
        parts.append(f"\n## {title}\n\n{_table(section)}")
    return "".join([*parts, _MARKDOWN_CAMERAS, _table(CAMERA_SPECS), _MARKDOWN_QOS])


def _table(specs: tuple[Spec, ...]) -> str:
    rows = ["| parameter | default | possible | set | meaning |", "| --- | --- | --- | --- | --- |"]
    for spec in specs:
        when = "live" if spec.live else "start" if spec.read_only else ""
        default = "16 zeros" if spec.name == "extrinsics" else f"`{_yaml(spec.default)}`"
        rows.append(f"| `{spec.name}` | {default} | {_possible(spec)} | {when} | {spec.text} |")
    return "\n".join(rows).replace("<", "&lt;").replace(">", "&gt;") + "\n"


def _possible(spec: Spec) -> str:
    if spec.possible:
        return spec.possible
    if spec.bounds:
        return f"{spec.bounds[0]:,} to {spec.bounds[1]:,}"
    return "true or false" if isinstance(spec.default, bool) else "text"


def launch_arguments() -> Mapping[str, tuple[type, str]]:
    """The parameters that the launch file has as arguments, too: type and text, by name.

    Without the type launch_ros guesses one: threshold:=1 becomes an integer, which the node
    refuses, and profile:=7 a number.
    """
    return {
        spec.name: (list[str] if isinstance(spec.default, list) else type(spec.default), spec.text)
        for spec in SPECS
        if spec.launch
    }


FILES = {"config/anomaly_detector.yaml": parameter_file, "docs/parameters.md": documentation}
"""What `write` makes, below the checkout."""


def write(root: Path) -> None:
    """Writes the files below a checkout's folder."""
    for name, make in FILES.items():
        (root / name).write_text(make())


if __name__ == "__main__":
    write(Path(__file__).parents[2])
