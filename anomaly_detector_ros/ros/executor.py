"""The executor that the node runs in."""

from __future__ import annotations

import threading
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.executors import Executor, ShutdownException, TimeoutException
from rclpy.task import Task


class NodeExecutor(Executor):
    """Runs callbacks in the thread that spins, but those of one group in a thread each.

    So images are received without a change of threads, which costs half as much again with rclpy's
    `MultiThreadedExecutor`, and services answer while a transition loads models.

    Args:
        slow: the group whose callbacks may take long.
        context: see `rclpy.executors.Executor`.
    """

    def __init__(self, slow: CallbackGroup, *, context: Any = None) -> None:
        super().__init__(context=context)
        self._slow = slow

    def spin_once(self, timeout_sec: float | None = None) -> None:
        """Waits for a callback and runs it, or starts it.

        Raises what the callback raises; what one in a thread of its own raises, once it has.
        """
        try:
            task: Task
            entity: Any
            task, entity, _ = self.wait_for_ready_callbacks(timeout_sec=timeout_sec)
        except (ShutdownException, TimeoutException):
            return
        if entity is not None and entity.callback_group is self._slow:
            threading.Thread(target=self._run, args=(task,), name="transition", daemon=True).start()
            return
        task()
        task.result()

    def _run(self, task: Task) -> None:
        task()  # keeps to itself what the callback raises
        error = task.exception()
        if error is not None:
            self.create_task(_throw, error)


def _throw(error: BaseException) -> None:
    raise error
