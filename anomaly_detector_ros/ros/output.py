"""How it stands with each topic that the node publishes: what whoever listens there can rely on.

No rclpy: a publisher is what has `get_subscription_count` and `publish`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PATIENCE = 5.0
"""Seconds that somebody may listen in vain before it is an error."""


@dataclass(frozen=True)
class OutputState:
    """How it stood with one output at one instant.

    Attributes:
        listened: whether somebody listens.
        problem: why nothing can be published now; empty: something can, or nobody listens.
        seconds: for how long whoever listens got nothing.
    """

    listened: bool = False
    problem: str = ""
    seconds: float = 0.0

    @property
    def late(self) -> bool:
        """Whether somebody has listened in vain for too long."""
        return bool(self.problem) and self.seconds > PATIENCE

    def __str__(self) -> str:
        """One of three: nobody listens, fine, or since when it cannot be made and why."""
        if not self.listened:
            return "nobody listens"
        if not self.problem:
            return "fine"
        return f"cannot be made for {self.seconds:.0f} s: {self.problem}"


class Output:
    """A topic that the node publishes on, for those who listen.

    Whoever makes its messages tells it what came of each that was wanted: `send` or `cannot`.

    Args:
        publisher: None: the topic is not published, whoever listens; see ``missing``.
        missing: why it is not.
        count: how many listen to a topic that is not published.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        publisher: Any,
        *,
        missing: str = "",
        count: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._publisher, self._missing, self._count, self._clock = publisher, missing, count, clock
        # Since when whoever listens has got nothing; None: nobody listens. Read and written by the
        # worker's thread and the timer's, which may both see a listener come: either is right.
        self._since: float | None = None
        self._problem = ""

    @property
    def wanted(self) -> bool:
        """Whether somebody listens who can be served."""
        return self._publisher is not None and self._listened()

    def send(self, message: Any) -> None:
        """Publishes; does nothing once the topic is given up, as in a thread that comes late."""
        self.publish(message)
        self._since, self._problem = self._clock(), ""

    def cannot(self, problem: str) -> None:
        """Tells why there is no message for those who listen, in one line."""
        self._problem = problem

    @property
    def problem(self) -> str:
        """Why the last message that was wanted could not be made; empty if it could."""
        return self._problem

    def state(self, obstacle: str = "") -> OutputState:
        """How it stands with it.

        Args:
            obstacle: why no message of the node's can be made now; empty: some can.
        """
        if not self._listened():
            return OutputState()
        problem = self._missing or obstacle or self._problem
        since = self._since
        seconds = 0.0 if since is None else self._clock() - since
        return OutputState(True, problem, seconds)

    def twin(self) -> Output:
        """Another output on the same topic with a state of its own, as each camera's costmap."""
        return Output(self, clock=self._clock)

    def publish(self, message: Any) -> None:
        """As a publisher, for a twin; its state is not this one's."""
        publisher = self._publisher
        if publisher is not None:
            publisher.publish(message)

    def get_subscription_count(self) -> int:
        """As a publisher, for a twin."""
        publisher = self._publisher
        return int(self._count() if publisher is None else publisher.get_subscription_count())

    def give_up(self) -> Any:
        """Returns the publisher, to be destroyed."""
        publisher, self._publisher = self._publisher, None
        return publisher

    def _listened(self) -> bool:
        listened = self.get_subscription_count() > 0
        if not listened:
            self._since, self._problem = None, ""
        elif self._since is None:
            self._since = self._clock()
        return listened
