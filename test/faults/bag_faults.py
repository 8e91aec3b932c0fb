"""Faults in the life and the input of ``bag``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from command_process import command, ended
from detect_faults import good_detect
from fault import Fault, expect
from support.node_client import picture
from support.waiting import wait_until

if TYPE_CHECKING:
    from bench import Bench

FRAMES = 40


def write_bag(bag: Path) -> None:
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    from anomaly_detector_ros.imaging.messages import image_fields

    store = get_typestore(Stores.ROS2_JAZZY)
    kinds, kind = store.types, "sensor_msgs/msg/Image"
    with Writer(bag, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection("/camera/image_raw", kind, typestore=store)
        for index in range(FRAMES):
            stamp = kinds["builtin_interfaces/msg/Time"](sec=100 + index, nanosec=0)
            header = kinds["std_msgs/msg/Header"](stamp=stamp, frame_id="optical")
            fields = image_fields(np.roll(picture(200, 300), index, 1), "rgb8")
            fields["data"] = np.frombuffer(fields["data"], np.uint8)
            message = kinds[kind](header=header, **fields)
            writer.write(connection, (100 + index) * 10**9, store.serialize_cdr(message, kind))


def bag_words(bench: Bench, bag: Path, output: Path, *more: str) -> list[str]:
    return ["bag", str(bag), "--output", str(output), "--profile", str(bench.profile),
            "--device", "cpu", "--offline", *more]  # fmt: skip


def bag_killed(bench: Bench) -> str:
    bag, output = bench.folder / "drive", bench.folder / "drive_anomalies"
    write_bag(bag)
    help_text = command(bench, "bag", "--help").communicate()[0]
    process = command(bench, *bag_words(bench, bag, output))
    partial = bench.folder / "drive_anomalies.partial"

    def half_way() -> bool:
        written = sum(file.stat().st_size for file in partial.rglob("*"))
        return written > 2_000_000 or process.poll() is not None

    wait_until(half_way, "a partial bag", 200)
    process.kill()
    process.communicate()
    expect(not output.exists(), "a bag is under its final name")
    return "no bag under the final name" + ("" if "--resume" in help_text else "; no --resume yet")


def bag_resumed(bench: Bench) -> None:
    """Recovery: resumed, or begun anew, the bag is the same as one made in one go."""
    from anomaly_detector_ros.sources.recordings import BagReader

    bag, output = bench.folder / "drive", bench.folder / "drive_anomalies"
    resume = "--resume" in command(bench, "bag", "--help").communicate()[0]
    whole = bench.folder / "whole" / "drive_anomalies"
    for words in (
        bag_words(bench, bag, output, *(["--resume"] if resume else [])),
        bag_words(bench, bag, whole),
    ):
        code, line = ended(command(bench, *words))
        expect(code == 0, f"exit code {code}: {line}")

    def content(path: Path) -> list[tuple[str, int, bytes]]:
        with BagReader(path) as reader:
            return [(c.topic, stamp, bytes(raw)) for c, stamp, raw in reader.messages()]

    expect(content(output) == content(whole), "the messages differ from those of a run in one go")


def truncated_bag(bench: Bench) -> str:
    bag = bench.folder / "cut_drive"
    write_bag(bag)
    file = next(bag.glob("*.mcap"))
    os.truncate(file, file.stat().st_size // 2)
    output = bench.folder / "cut_anomalies"
    code, line = ended(command(bench, *bag_words(bench, bag, output)))
    expect(code == 1, f"exit code {code}: {line}")
    expect(not output.exists(), "a bag is under its final name")
    return f'exit code 1: "{line.replace(str(bench.folder), "...")[:160]}"'


FAULTS = [
    Fault("commands", "bag_killed", "`bag` and SIGKILL half-way, then again",
          "no bag under the final name; then the same messages as in one go", bag_killed,
          bag_resumed, needs_node=False),
    Fault("commands", "truncated_bag", "`bag` on a recording cut in half",
          "exit code 1 and one line, no bag under the final name", truncated_bag,
          good_detect, needs_node=False),
]  # fmt: skip
