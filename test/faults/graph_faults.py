"""Faults in the graph: QoS, cameras and subscribers that come, go and stall."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
from fault import Fault, expect
from rclpy.qos import DurabilityPolicy, QoSProfile
from support.node_client import CAMERA, NODE, image, picture
from support.waiting import wait_until

if TYPE_CHECKING:
    from bench import Bench

TOPIC = f"{CAMERA}/image_raw"
SUBSCRIBERS = 100
FLOOD = 500


@contextlib.contextmanager
def child(bench: Bench, *command: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process of the graph, killed at the end."""
    process = subprocess.Popen(
        [sys.executable, *command], env=bench.environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def qos_mismatch(bench: Bench) -> str:
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    subscription = bench.client.listen(bench.client.output("heatmap"), qos=latched)
    words = "incompatible durability QoS"
    try:
        wait_until(lambda: words in bench.node.output, f"'{words}' in the log")
        bench.good_frame()
    finally:
        bench.client.forget(subscription)
    line = next(line for line in bench.node.output.splitlines() if words in line)
    return f'others get their outputs; log: "...{line[line.index("has an") :][:130]}"'


def camera_stops(bench: Bench) -> str:
    said = bench.client.diagnostics(CAMERA, lambda s: "no image on" in s["message"], "no image")
    expect(said["level"] != "0", "diagnostics level OK")
    first = "WARN" if said["level"] == "1" else "ERROR"
    # Somebody listens, and after 5 s that is an error.
    bench.client.diagnostics(CAMERA, lambda s: s["level"] == "2", "an error", 10.0)
    return f'diagnostics {first}, then ERROR: "{said["message"]}"'


def publisher_restarts(bench: Bench) -> str:
    file = bench.folder / "played.png"
    cv2.imwrite(str(file), picture())
    player = [
        "-m",
        "anomaly_detector_ros.demo.player",
        str(file),
        "--rate",
        "20",
        "--count",
        "9999",
    ]
    for number in (1, 2):
        before = bench.count("processed")
        with child(bench, *player):
            bench.client.diagnostics(
                CAMERA,
                lambda s, b=before: int(s["processed"]) > b + 5,
                f"player {number}'s images",
                60,
            )
    return "images of both processes processed"


def subscriber_stalls(bench: Bench) -> str:
    listener = str(Path(__file__).with_name("listener.py"))
    with child(bench, listener, f"{NODE}/{CAMERA}/heatmap") as process:
        topic = f"{NODE}/{CAMERA}/heatmap"
        wait_until(lambda: bench.client.client.count_subscribers(topic) >= 2, "the listener", 60)
        bench.good_frame()
        process.send_signal(signal.SIGSTOP)
        slowest = 0.0
        for _ in range(20):
            begun = time.monotonic()
            bench.good_frame_once()
            slowest = max(slowest, time.monotonic() - begun)
        process.send_signal(signal.SIGCONT)
    return f"20 images processed meanwhile, each within {slowest:.2f} s"


def many_subscribers(bench: Bench) -> str:
    made = [bench.client.listen(bench.client.output("mask")) for _ in range(SUBSCRIBERS)]
    topic = f"{NODE}/{CAMERA}/mask"
    try:
        wait_until(
            lambda: bench.client.client.count_subscribers(topic) > SUBSCRIBERS, "all of them"
        )
        wait_until(
            lambda: bench.good_frame() is None and all(made),
            f"a mask at each of {SUBSCRIBERS}",
        )
    finally:
        for each in made:
            bench.client.forget(each)
    return f"each of {SUBSCRIBERS} got its mask"


def flood(bench: Bench) -> str:
    before = bench.count("received")
    for _ in range(FLOOD):
        bench.client.send(image())
    bench.good_frame()
    received = bench.count("received") - before
    expect(0 < received <= FLOOD + 70, f"{received} counted as received of {FLOOD} sent")
    return f"{FLOOD} sent, {received} received, the rest lost in the transport (best effort)"


def publisher_returns(bench: Bench) -> str:
    for _ in range(3):
        bench.client.restart_publisher(TOPIC)
        bench.good_frame()
    return "images of each new publisher processed"


FAULTS = [
    Fault("graph", "qos_mismatch", "a subscriber that asks for latched heatmaps",
          "event logged with the remedy, others undisturbed", qos_mismatch),
    Fault("graph", "camera_stops", "no image for 3 s and more", "diagnostics warn, then err, and "
          "say for how long", camera_stops),
    Fault("graph", "publisher_returns", "the camera's publisher removed and made anew, three times",
          "images go on", publisher_returns),
    Fault("graph", "publisher_killed", "camera process killed with SIGKILL, then another started",
          "images go on", publisher_restarts),
    Fault("graph", "subscriber_stalls", "a reliable subscriber's process stopped with SIGSTOP",
          "the node and other subscribers go on", subscriber_stalls),
    Fault("graph", "many_subscribers", f"{SUBSCRIBERS} subscribers on one output",
          "each gets the output", many_subscribers),
    Fault("graph", "flood", f"{FLOOD} images as fast as they go out",
          "every received one counted as processed or dropped", flood),
]  # fmt: skip
