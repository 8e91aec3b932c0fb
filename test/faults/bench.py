"""The test bench: a folder, a tiny profile, the node under test and a client beside it."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fault import SkipError, UnexpectedError, expect
from node_process import NodeProcess
from sensor_msgs.msg import Image
from support.node_client import CAMERA, LoneClient, image, picture
from support.tiny import save_tiny_unet, write_profile

from anomaly_detector_ros.demo.processes import graph_environment

MAX_INPUT_AGE = 3.0
SIZE = (48, 64)
_TYPES = {"heatmap": ("32FC1", np.float32), "mask": ("mono8", np.uint8)}


class Bench:
    """Everything a fault needs.

    Args:
        folder: an empty folder, for all that is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        logs = folder / "ros_logs"
        logs.mkdir()
        self.environment = graph_environment(logs)
        self.node: NodeProcess | None = None
        self._started = 0

    @functools.cached_property
    def model(self) -> Path:
        """The tiny model's directory, written when it is first asked for, as that takes torch."""
        return save_tiny_unet(self.folder / "tiny")

    @functools.cached_property
    def profile(self) -> Path:
        """The tiny model's profile."""
        return write_profile(self.folder / "light.yaml", self.model)

    @functools.cached_property
    def client(self) -> LoneClient:
        """The client, which joins the graph when it is first asked for."""
        return LoneClient(self.environment)

    @functools.cached_property
    def outputs(self) -> dict[str, Any]:
        """Subscriptions to the outputs that are looked at."""
        return {name: self.client.listen(self.client.output(name)) for name in _TYPES}

    def close(self) -> None:
        """Ends the node and the client."""
        self.stop_node()
        if "client" in vars(self):
            self.client.close()

    # -- the node ----------------------------------------------------------------------------------

    def launch(
        self,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        **parameters: Any,
    ) -> NodeProcess:
        """Starts a node in place of the one that runs, and does not wait for it."""
        self.stop_node()
        own = {
            "profile": str(self.profile), "device": "cpu", "offline": True,
            "max_input_age": MAX_INPUT_AGE, "cameras": [CAMERA],
        }  # fmt: skip
        self._started += 1
        log = self.folder / f"node_{self._started}.log"
        prefix = [*prefix, *_as_anybody()]
        self.node = NodeProcess(
            self.environment if environment is None else environment,
            log, {**own, **parameters}, prefix,
        )  # fmt: skip
        return self.node

    def start(self, **arguments: Any) -> NodeProcess:
        """`launch`, then waits until a good frame goes through."""
        node = self.launch(**arguments)
        node.wait_for("active, listening")
        self.good_frame()
        return node

    def live(self) -> NodeProcess:
        """The active node, started if none runs."""
        if self.node is not None and self.node.running:
            return self.node
        return self.start()

    def stop_node(self) -> None:
        """Ends the node, if one runs."""
        if self.node is not None:
            self.node.close()
            self.node = None

    def restart(self) -> None:
        """Recovery of what ends the process: the supervisor starts it again."""
        self.start()

    def reconfigure(self, **parameters: Any) -> bool:
        """Brings the node down to unconfigured, sets parameters and configures; success or not."""
        if self.client.state() == "active":
            expect(self.client.transition("deactivate"), "deactivate failed")
        if self.client.state() == "inactive":
            expect(self.client.transition("cleanup"), "cleanup failed")
        for name, value in parameters.items():
            result = self.client.set_parameters(**{name: value})
            expect(result.successful, f"{name} refused: {result.reason}")
        return self.client.transition("configure")

    def back_to_normal(self, **parameters: Any) -> None:
        """Recovery of a node that could not be configured: the cause removed, configured again."""
        expect(self.reconfigure(profile=str(self.profile), **parameters), "configure failed")
        expect(self.client.transition("activate"), "activate failed")
        self.good_frame()

    # -- frames ------------------------------------------------------------------------------------

    def good_frame(self, timeout: float = 60.0) -> None:
        """Sends good frames until one gives outputs of its size.

        Raises:
            UnexpectedError: the process ended, no outputs came, or they are wrong.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            expect(self.node is not None and self.node.running, "the node's process has ended")
            stamp = self.client.send(image(picture(*SIZE)))
            if self.await_outputs(stamp, 1.0):
                return
        raise UnexpectedError(f"no output of a good frame within {timeout:g} s")

    def good_frame_once(self, timeout: float = 20.0) -> None:
        """Sends one good frame; UnexpectedError if its outputs do not come."""
        stamp = self.client.send(image(picture(*SIZE)))
        expect(self.await_outputs(stamp, timeout), f"no output of a frame within {timeout:g} s")

    def await_outputs(
        self, stamp: tuple[int, int], timeout: float = 20.0, size: tuple[int, int] = SIZE
    ) -> bool:
        """Whether outputs of that stamp came in time; UnexpectedError if they are of wrong size."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            found = {name: _with_stamp(messages, stamp) for name, messages in self.outputs.items()}
            if all(found.values()):
                for name, message in found.items():
                    _check_output(name, message, size)
                return True
            time.sleep(0.005)
        return False

    def check_counters(self) -> None:
        """At rest: received = processed + dropped, every reason counted, nothing pending."""

        def adds_up(status: dict[str, str]) -> bool:
            reasons = sum(int(n) for key, n in status.items() if key.startswith("dropped: "))
            received, processed, dropped, pending = (
                int(status[key]) for key in ("received", "processed", "dropped", "pending")
            )
            return pending == 0 and received == processed + dropped and dropped == reasons

        self.client.diagnostics(CAMERA, lambda s: "received" in s and adds_up(s), "sums at rest")

    def count(self, key: str) -> int:
        """One of the camera's counters, as of now."""
        return int(self.client.diagnostics(CAMERA, lambda s: key in s, key)[key])


def _with_stamp(messages: list[Image], stamp: tuple[int, int]) -> Image | None:
    del messages[:-50]
    return next(
        (m for m in list(messages) if (m.header.stamp.sec, m.header.stamp.nanosec) == stamp), None
    )


def _check_output(name: str, message: Image, size: tuple[int, int]) -> None:
    encoding, dtype = _TYPES[name]
    found = (message.encoding, message.height, message.width)
    expect(found == (encoding, *size), f"{name} is {found}, not {(encoding, *size)}")
    values = np.frombuffer(message.data, dtype)
    expect(values.size == size[0] * size[1], f"{name} holds {values.size} values for {size}")
    expect(np.isfinite(values).all(), f"{name} holds values that are not finite")


def _as_anybody() -> list[str]:
    """Takes from root the right to read every file, so that permissions count as for others."""
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        return []
    return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]


def small_disk(directory: Path, kilobytes: int, *, fill: bool = False) -> list[str]:
    """A command prefix whose child sees a disk of that size on the directory, full if wanted.

    Raises:
        SkipError: this machine gives no mount namespace.
    """
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "-r", "--mount"]
    try:
        subprocess.run([*unshare, "mount", "-t", "tmpfs", "tmpfs", str(directory)],
                       check=True, capture_output=True)  # fmt: skip
    except (OSError, subprocess.CalledProcessError) as error:
        raise SkipError(f"no mount namespace: {error}") from error
    filling = f"; head -c {kilobytes}k /dev/zero > '{directory}/filler' 2>/dev/null" if fill else ""
    script = f"mount -t tmpfs -o size={kilobytes}k tmpfs '{directory}'{filling}; exec \"$@\""
    return [*unshare, "sh", "-c", script, "sh"]
