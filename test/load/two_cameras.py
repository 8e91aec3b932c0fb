"""Two 720p cameras at 30 Hz into one node: what becomes of every frame, and at what cost.

Each camera process counts what it sent. The node counts received, processed and dropped; sent minus
received was lost before the node's callback, by the transport or in the queue of depth 1, and is
reported as such.

The age of an output is taken twice: by the node when processing begins, which is what
``max_input_age`` bounds, and where the output arrives, as this process's clock minus the stamp. The
latter includes inference and both transports, so on a machine too busy for its profile it breaks
the bound.

Memory is the node's resident set about each second after the warm-up: its own, which must not leak
(see `process_usage.leak`), and the transport's shared memory, which becomes resident page by page
until every segment was used once. CPU
of the ROS side is the time of all threads of the node but the detector's
(/proc/PID/task/*/schedstat), plus what the detector's thread spends decoding and publishing. That
part is known as wall-clock time from the diagnostics, so on a shared machine the sum is an upper
bound. It is divided by the number of cameras and the seconds of the run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from node_process import NodeProcess
from process_usage import leak, resident_bytes, thread_seconds, used_between
from sensor_msgs.msg import Image
from support.node_client import NODE, LoneClient, Status

from anomaly_detector_ros.demo.processes import graph_environment

HERE = Path(__file__).resolve().parent
CAMERAS = ("left", "right")
RATE = 30.0
OUTPUT_RATE = 2.0
MAX_INPUT_AGE = 1.0
OUTPUTS = ("heatmap", "mask")
MAX_LEAK = 0.5  # MB a minute: 30 an hour; without a leak at most 0.09 was seen
MAX_CPU = 0.10


class Run:
    """One run: starts the processes, watches, and ends them."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds
        self.environment = graph_environment(folder)
        self.client = LoneClient(self.environment)
        self.ages: dict[str, list[float]] = {name: [] for name in CAMERAS}
        self.outputs = dict.fromkeys(CAMERAS, 0)
        self.statuses: dict[str, list[Status]] = {name: [] for name in CAMERAS}
        self.memory: list[tuple[int, int]] = []
        self.node = NodeProcess(
            self.environment,
            folder / "node.log",
            {
                "profile": str(HERE / "light.yaml"), "device": "cpu", "cameras": list(CAMERAS),
                "max_rate": OUTPUT_RATE, "max_input_age": MAX_INPUT_AGE, "offline": True,
            },
        )  # fmt: skip
        self._listen()

    def _listen(self) -> None:
        for camera in CAMERAS:
            for output in OUTPUTS:

                def arrived(image: Image, camera: str = camera, output: str = output) -> None:
                    stamp = image.header.stamp.sec * 10**9 + image.header.stamp.nanosec
                    self.ages[camera].append((time.time_ns() - stamp) * 1e-9)
                    self.outputs[camera] += output == OUTPUTS[-1]

                topic = f"{NODE}/{camera}/{output}"
                self.client.client.create_subscription(Image, topic, arrived, 10)

    def measure(self) -> dict[str, Any]:
        """The whole run; returns what was measured."""
        self.node.wait_for("active, listening")
        files = [self.folder / f"{name}.json" for name in CAMERAS]
        script = str(HERE / "camera_process.py")
        drivers = [
            subprocess.Popen(
                [sys.executable, script, name, str(RATE), str(self.seconds), str(file)],
                env=self.environment,
            )
            for name, file in zip(CAMERAS, files, strict=True)
        ]
        try:
            used, span = self._watch(drivers)
            for driver in drivers:
                driver.wait(60)
            final = [self._at_rest(name) for name in CAMERAS]
        finally:
            for driver in drivers:
                driver.kill()
        sent = [json.loads(file.read_text()) for file in files]
        return self._summary(sent, final, used, span)

    def _watch(self, drivers: Sequence[subprocess.Popen[bytes]]) -> tuple[dict[str, float], float]:
        """Samples until a driver ends; CPU seconds used after the warm-up, and that span."""
        for name in CAMERAS:
            self.client.diagnostics(name, _has_processed, "images", 90.0)
        time.sleep(min(30.0, self.seconds / 4))
        begun, before, handling = time.monotonic(), thread_seconds(self.node.pid), 0.0
        after, ended, last = before, begun, self._statuses()
        while all(driver.poll() is None for driver in drivers):
            self.memory.append(resident_bytes(self.node.pid))
            after, ended, new = thread_seconds(self.node.pid), time.monotonic(), self._statuses()
            handling += sum(map(_handling_seconds, last, new))
            last = new
        detector, others = used_between(before, after)
        return {"detector": detector, "others": others, "handling": handling}, ended - begun

    def _statuses(self) -> list[Status]:
        """The cameras' next diagnostics, which are remembered for their largest ages."""
        found = [
            self.client.diagnostics(name, lambda s: "processed" in s, "counts") for name in CAMERAS
        ]
        for name, status in zip(CAMERAS, found, strict=True):
            self.statuses[name].append(status)
        return found

    def _at_rest(self, name: str) -> dict[str, int]:
        def rested(status: Status) -> bool:
            return status.get("pending") == "0" and float(status["input rate (Hz)"]) < RATE / 2

        status = self.client.diagnostics(name, rested, "nothing pending", 60.0)
        keys = ("received", "processed", "dropped", "pending")
        reasons = [key for key in status if key.startswith("dropped: ")]
        return {key: int(status[key]) for key in (*keys, *reasons)}

    def _summary(
        self, sent: list[Any], final: list[dict[str, int]], used: dict[str, float], span: float
    ) -> dict[str, Any]:
        cameras = {}
        for name, source, counts in zip(CAMERAS, sent, final, strict=True):
            ages = self.ages[name]
            at_start = [float(s["input age, largest (s)"] or 0) for s in self.statuses[name]]
            cameras[name] = {
                **source, **counts,
                "lost before the node": source["sent"] - counts["received"],
                "outputs arrived": self.outputs[name],
                "age at start of processing, largest": max(at_start),
                "age at arrival, median": float(np.median(ages)),
                "age at arrival, largest": max(ages),
            }  # fmt: skip
        return {
            "seconds": self.seconds,
            "measured for (s)": span,
            "cores": len(os.sched_getaffinity(0)),
            "cameras": cameras,
            "memory of its own (MB)": [round(self.memory[i][0] / 2**20, 1) for i in (0, -1)],
            "shared memory (MB)": [round(self.memory[i][1] / 2**20, 1) for i in (0, -1)],
            "leak (MB a minute)": leak([own for own, _ in self.memory], span) * 60 / 2**20,
            "CPU of the detector's thread (cores)": used["detector"] / span,
            "CPU of the other threads (cores)": used["others"] / span,
            "CPU of decoding and publishing, at most (cores)": used["handling"] / span,
            "CPU of the ROS side per camera (cores)":
                (used["others"] + used["handling"]) / span / len(CAMERAS),
        }  # fmt: skip

    def close(self) -> None:
        """Ends the node and leaves the graph."""
        self.node.close()
        self.client.close()


def _has_processed(status: Status) -> bool:
    return int(status.get("processed", 0)) > 0


def _handling_seconds(old: Status, new: Status) -> float:
    """Seconds of decoding and publishing between two statuses of a camera."""
    stages = sum(float(new.get(f"latency: {s} (s)") or 0) for s in ("decoding", "publishing"))
    return (int(new["processed"]) - int(old["processed"])) * stages


def checks(found: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """What is asked, what was found, the bound, and whether it holds."""
    made = []
    for name, each in found["cameras"].items():
        reasons = sum(n for key, n in each.items() if key.startswith("dropped: "))
        balance = each["received"] - each["processed"] - each["dropped"]
        made += [
            (f"{name}: sent, received", f"{each['sent']}, {each['received']}", "", True),
            (f"{name}: lost before the node", f"{each['lost before the node']}", "reported", True),
            (f"{name}: received - processed - dropped", f"{balance}", "0",
             balance == 0 and reasons == each["dropped"]),
            (f"{name}: processed, outputs arrived",
             f"{each['processed']}, {each['outputs arrived']}", "", True),
            _age(f"{name}: largest age when processing began (s)",
                 each["age at start of processing, largest"]),
            _age(f"{name}: largest age where the output arrives (s)",
                 each["age at arrival, largest"]),
        ]  # fmt: skip
    cpu = found["CPU of the ROS side per camera (cores)"]
    made += [
        *((key, " -> ".join(map(str, found[key])), "", True)
          for key in ("memory of its own (MB)", "shared memory (MB)")),
        ("leak (MB a minute)", f"{found['leak (MB a minute)']:.3f}", f"{MAX_LEAK:g}",
         found["leak (MB a minute)"] < MAX_LEAK),
        ("CPU of the ROS side per camera (cores)", f"{cpu:.3f}", f"{MAX_CPU:g}", cpu < MAX_CPU),
    ]  # fmt: skip
    return made


def _age(what: str, seconds: float) -> tuple[str, str, str, bool]:
    return what, f"{seconds:.3f}", f"{MAX_INPUT_AGE:g}", seconds <= MAX_INPUT_AGE
