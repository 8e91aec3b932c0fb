"""The demo's graph: player, node and recorder processes, and a monitor in this one."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from anomaly_detector_ros.demo.camera import SceneCamera
from anomaly_detector_ros.demo.processes import ProcessGroup, graph_environment, wait_until
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.sources.frames import Source, find_sources
from anomaly_detector_ros.sources.recordings import COMPRESSED, BagReader

CAMERA = "camera"
DETECTOR = "/anomaly_detector"
HEATMAP = f"{DETECTOR}/{CAMERA}/heatmap"
LOADING, PLAYING = "the node loads its models", "pictures travel to the node and back"
"""What `run_graph` reports of the two long parts."""
LOAD_TIMEOUT = 600.0
"""Seconds for the node to load its models."""
DISCOVERY_TIMEOUT = 60.0
"""Seconds for the recorder to find the node's topics."""
FRAME_TIMEOUT = 120.0
"""Seconds without any progress, after which the demo gives up."""


@dataclass(frozen=True)
class Playback:
    """What the player plays.

    Attributes:
        paths: pictures, folders, videos or recordings, as `sources.find_sources` takes them.
        rate: pictures per second; None: the next when the node has answered the one before.
        count: how many, over and over; None: each once.
        topic: of recordings.
        grey_range: see `images.to_8_bit`; (0, 0) for None.
        on_error: "skip" or "stop" at what cannot be read.
        calibration: file of the pictures' camera, see `demo.camera`; then there are obstacles, too.
    """

    paths: tuple[Path, ...]
    rate: float | None
    count: int | None = None
    topic: str | None = None
    grey_range: tuple[float, float] = (0.0, 0.0)
    on_error: str = "skip"
    calibration: Path | None = None

    @cached_property
    def sources(self) -> list[Source]:
        """What is to be played; UserError where there is nothing, or the topic is unclear."""
        return find_sources(self.paths, self.topic)

    @cached_property
    def expected(self) -> int:
        """How many pictures that is, for progress."""
        return self.count or sum(source.expected() for source in self.sources)

    @cached_property
    def transport(self) -> str:
        """Raw or compressed: one recording is played as it is."""
        source, *others = self.sources
        if source.kind != "recording" or others:
            return "raw"
        with BagReader(source.file) as reader:
            kinds = {c.msgtype for c in reader.connections if c.topic == source.topic}
        return "compressed" if kinds == {COMPRESSED} else "raw"


@dataclass(frozen=True)
class Counts:
    """The node's own counts of one camera, from /diagnostics."""

    state: str = ""
    fault: str = ""
    received: int = 0
    processed: int = 0
    dropped: int = 0
    pending: int = 0
    drop_reasons: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, diagnostics: Any, camera: str, node: str = "") -> Counts | None:
        """The counts in a `DiagnosticArray`; None if it is of neither the camera nor the node.

        Args:
            diagnostics: the message.
            camera: name of the camera's status.
            node: name of the node's status, for its state and fault.
        """
        found = {s.name: (s, {p.key: p.value for p in s.values}) for s in diagnostics.status}
        if not {camera, node} & found.keys():
            return None
        status, values = found.get(node, (None, {}))
        told = found.get(camera, (None, {}))[1]
        reasons = {
            key.removeprefix("dropped: "): int(value)
            for key, value in told.items()
            if key.startswith("dropped: ") and int(value)
        }
        return cls(
            state=values.get("state", ""),
            fault=status.message if status is not None and status.level == b"\x02" else "",
            **{k: int(told.get(k, 0)) for k in ("received", "processed", "dropped", "pending")},
            drop_reasons=reasons,
        )


class Monitor:
    """Reads /diagnostics in a thread of this process."""

    def __init__(self, environment: dict[str, str]) -> None:
        # rclpy reads them at init; this process needs no large shared-memory segment of its own.
        for name in ("ROS_AUTOMATIC_DISCOVERY_RANGE", "ROS_LOCALHOST_ONLY", "ROS_LOG_DIR"):
            if name in environment:
                os.environ[name] = environment[name]
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.context import Context
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.node import Node

        self.counts = Counts()
        self._context = Context()
        rclpy.init(args=[], context=self._context, domain_id=int(environment["ROS_DOMAIN_ID"]))
        self._node = Node("demo_monitor", context=self._context)
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._on_message, 10)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        while self._context.ok():
            try:
                self._executor.spin_once(timeout_sec=0.2)
            except Exception:  # the context ends while it waits
                if self._context.ok():
                    raise
                return

    def _on_message(self, message: Any) -> None:
        name = DETECTOR.lstrip("/")
        counts = Counts.of(message, f"{name}: {CAMERA}", f"{name}: node")
        self.counts = counts or self.counts

    def close(self) -> None:
        """End the thread and leave the graph."""
        self._context.try_shutdown()
        self._thread.join(2.0)


def run_graph(
    playback: Playback,
    output: Path,
    parameters: Mapping[str, str | float | bool],
    report: Callable[[str, Counts], None],
) -> dict[str, Any]:
    """Play pictures through the node into the bag `output`/bag; returns a summary.

    Args:
        playback: what to play.
        output: directory that exists; logs go into `output`/logs.
        parameters: the node's, besides those that follow from what is played.
        report: called again and again with what is going on and the node's counts.

    Returns:
        The recorder's summary (see `demo.recorder`), with what the player says of the frames as
        `played` and the node's `counts` added.

    Raises:
        UserError: a process failed, the node could not load its models, or nothing moves any more.
    """
    logs = output / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    environment = graph_environment(logs)
    monitor = Monitor(environment)
    try:
        with ProcessGroup(environment, logs) as processes:
            _start_node(processes, playback, parameters)
            _wait_active(processes, monitor, report)
            report("the recorder and the player join", monitor.counts)
            _start_recorder(processes, playback, output)
            _start_player(processes, playback)
            _wait_played(processes, monitor, report)
            _wait_processed(processes, monitor, report)
            report("writing the bag", monitor.counts)
            if processes.stop("recorder") != 0:
                raise UserError(f"recorder failed: {processes.last_line('recorder')}")
            told = processes.output("player").splitlines()
    finally:
        monitor.close()
    summary = json.loads((output / "summary.json").read_text())
    played = json.loads(next((line for line in told if line.startswith("{")), "{}"))
    return {**summary, "played": played, "counts": monitor.counts}


def _start_node(
    processes: ProcessGroup, playback: Playback, parameters: Mapping[str, str | float | bool]
) -> None:
    own: dict[str, Any] = {
        "cameras": [CAMERA],
        "image_transport": playback.transport,
        "grey_range": list(playback.grey_range),
    }
    if playback.rate is None:
        # A picture that is sent when the one before is answered is never late, only the machine is;
        # and it must arrive, as it is not followed by another one.
        own["max_input_age"] = own["watchdog_timeout"] = 0.0
        topic = f"/{CAMERA}/image_raw" + ("/compressed" * (playback.transport == "compressed"))
        own[f"qos_overrides.{topic}.subscription.reliability"] = "reliable"
    if playback.calibration is not None:
        own[f"{CAMERA}.height"] = SceneCamera.load(playback.calibration).height
    # ROS reads values as YAML, of which JSON is a part.
    pairs = {**parameters, **own}.items()
    arguments = [part for k, v in pairs for part in ("-p", f"{k}:={json.dumps(v)}")]
    processes.start("node", "anomaly_detector_ros.ros.main", "--ros-args", *arguments)


def _start_recorder(processes: ProcessGroup, playback: Playback, output: Path) -> None:
    pose = []
    if playback.calibration is not None:
        pose = ["--height", str(SceneCamera.load(playback.calibration).height)]
    processes.start(
        "recorder",
        "anomaly_detector_ros.demo.recorder",
        str(output / "bag"),
        *pose,
        *("--summary", str(output / "summary.json")),
        *("--camera", CAMERA, "--transport", playback.transport),
        *("--wait", str(DISCOVERY_TIMEOUT)),
    )

    def recording() -> bool:
        processes.check("recorder")
        return "recording" in processes.output("recorder").split()

    if not wait_until(recording, 2 * DISCOVERY_TIMEOUT):
        raise UserError(f"the recorder does not start: {processes.last_line('recorder')}")


def _start_player(processes: ProcessGroup, playback: Playback) -> None:
    pace = ["--answers", DETECTOR] if playback.rate is None else ["--rate", str(playback.rate)]
    options = ["--camera", CAMERA, "--subscribers", "2", *pace]
    if playback.count is not None:
        options += ["--count", str(playback.count)]
    if playback.topic is not None:
        options += ["--topic", playback.topic]
    options += ["--grey-range", *map(str, playback.grey_range), "--on-error", playback.on_error]
    if playback.calibration is not None:
        options += ["--calibration", str(playback.calibration)]
    paths = map(str, playback.paths)
    processes.start("player", "anomaly_detector_ros.demo.player", *paths, *options)


def _wait_active(
    processes: ProcessGroup, monitor: Monitor, report: Callable[[str, Counts], None]
) -> None:
    def active() -> bool:
        processes.check("node")
        if monitor.counts.fault:
            raise UserError(f"the node cannot start: {monitor.counts.fault}")
        report(LOADING, monitor.counts)
        return monitor.counts.state == "active"

    if not wait_until(active, LOAD_TIMEOUT):
        raise UserError(
            f"the node is not active after {LOAD_TIMEOUT:.0f} s: {processes.last_line('node')}"
        )


def _wait_played(
    processes: ProcessGroup, monitor: Monitor, report: Callable[[str, Counts], None]
) -> None:
    while processes.running("player"):
        processes.check("node")
        processes.check("recorder")
        report(PLAYING, monitor.counts)
        time.sleep(0.1)
    processes.check("player", may_end=True)


def _wait_processed(
    processes: ProcessGroup, monitor: Monitor, report: Callable[[str, Counts], None]
) -> None:
    """Wait until the node has done what it received; diagnostics come once a second."""
    settled_since, last, moved = 0.0, monitor.counts, time.monotonic()
    while True:
        processes.check("node")
        counts, now = monitor.counts, time.monotonic()
        report("the node finishes", counts)
        if counts != last:
            last, moved, settled_since = counts, now, 0.0
        if counts.pending == 0:
            settled_since = settled_since or now
            if now - settled_since > 2.5:
                return
        if now - moved > FRAME_TIMEOUT:
            raise UserError(
                f"the node made no progress for {FRAME_TIMEOUT:.0f} s with {counts.pending} "
                f"pictures to go: {processes.last_line('node')}"
            )
        time.sleep(0.1)
