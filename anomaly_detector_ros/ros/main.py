"""Entry point of the executable ``anomaly_detector_node``."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

from anomaly_detector_ros.runtime import allocator

if TYPE_CHECKING:
    from rclpy.executors import Executor
    from rclpy.node import Node

EXIT_TIME = 1.0
"""Seconds the image in work gets to finish after SIGINT or SIGTERM."""
DEADLINE = 2.5
"""Seconds after which the process ends in any case, with exit code 1."""


class _Signals:
    """SIGINT and SIGTERM: the end at once before the node runs; then rclpy ends its spinning.

    rclpy's handlers, once installed, call these, too. Nothing is raised, as Python would lose an
    exception that is raised in a finaliser or a callback of the import system.
    """

    def __init__(self) -> None:
        self.running = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        if not self.running:
            os._exit(0)


def main(args: list[str] | None = None) -> None:
    """Runs the node until SIGINT or SIGTERM and ends the process."""
    code = run(_Signals(), args)
    with contextlib.suppress(OSError):  # a log on a full disk, a terminal that is gone
        sys.stdout.flush()
        sys.stderr.flush()
    # Python would wait for a model that still loads or runs in a thread, and taking torch apart
    # alone takes seconds. Nothing is left to save.
    os._exit(code)


def run(signals: _Signals, args: list[str] | None = None) -> int:
    """Runs the node until SIGINT or SIGTERM. Returns the exit code."""
    allocator.tune()  # before anything large is allocated

    import rclpy

    from anomaly_detector_ros.errors import UserError

    try:
        rclpy.init(args=args)
    except Exception as error:  # malformed --ros-args
        return _refuse(error)
    try:
        from anomaly_detector_ros.ros.executor import NodeExecutor
        from anomaly_detector_ros.ros.given import foreign_files
        from anomaly_detector_ros.ros.node import AnomalyDetectorNode

        node = AnomalyDetectorNode()
    except UserError as error:
        rclpy.try_shutdown()
        return _refuse(error)
    except Exception:
        if rclpy.ok():
            raise
        return 0  # SIGINT or SIGTERM came while the node was made
    for line in foreign_files(args or sys.argv, node.get_fully_qualified_name()):
        node.get_logger().warning(line)
    executor = NodeExecutor(node.transitions)
    executor.add_node(node)
    signals.running = True
    spin(executor, node)
    _give_up_after(DEADLINE)
    if not node.busy:  # a transition in another thread still uses what would be destroyed
        node.close(EXIT_TIME)
        executor.shutdown(timeout_sec=EXIT_TIME)
        node.destroy_node()
    rclpy.try_shutdown()
    return 0


def _give_up_after(seconds: float) -> None:
    """Ends the process with exit code 1 after this time, should putting things in order hang."""

    def end() -> None:
        with contextlib.suppress(OSError):
            print(
                f"anomaly_detector_node: not put in order within {seconds:g} s: ended as it is",
                file=sys.stderr,
                flush=True,
            )
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def spin(executor: Executor, node: Node) -> None:
    """Spins until the node's context is shut down, whatever a callback raises."""
    # Where InvalidHandle is defined differs between releases; the executors import it in all.
    from rclpy.executors import ExternalShutdownException, InvalidHandle

    while node.context.ok():
        try:
            executor.spin()
            return  # the context or the executor was shut down
        except ExternalShutdownException:
            return
        except InvalidHandle:
            # The executor was about to wait for a subscription that a transition, in another
            # thread, destroyed at that moment. It is gone when the executor looks again.
            continue
        except Exception as error:
            if node.context.ok():
                node.get_logger().error(f"in a callback: {type(error).__name__}: {error}")
                time.sleep(0.1)  # should it come again at once


def _refuse(error: Exception) -> int:
    from anomaly_detector_ros.errors import one_line

    print(f"anomaly_detector_node: {one_line(error)}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    main()
