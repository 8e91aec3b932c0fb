"""How long work tells how far it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

EVERY = 30.0
"""Seconds between the lines of `PlainProgress`."""


class Progress(Protocol):
    """Hears of the progress of long work; `cli.common.progress_bar` gives one."""

    def __call__(self, done: int, total: int | None = None, doing: str | None = None) -> None:
        """Take what is done and, if they change, the total and what is being done."""


def silent(done: int, total: int | None = None, doing: str | None = None) -> None:
    """Tells nobody."""


class PlainProgress:
    """Writes a line every so often, for where there is no terminal; a context manager.

    Args:
        what: is being done.
        total: how much there is, if that is known.
        write: takes a line.
        every: seconds between lines.
    """

    def __init__(
        self,
        what: str,
        total: int | None,
        write: Callable[[str], object],
        every: float = EVERY,
    ) -> None:
        self._what, self._total, self._write, self._every = what, total, write, every
        self._doing = what
        self._done = 0
        self._start = time.monotonic()
        self._ended = threading.Event()
        # A thread: a single step may take longer than the time between lines.
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> PlainProgress:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def __call__(self, done: int, total: int | None = None, doing: str | None = None) -> None:
        """See `Progress`."""
        doing = doing or self._what
        if done < self._done or (not done and doing != self._doing):  # another piece of work
            self._start = time.monotonic()
        self._done, self._doing = done, doing
        self._total = self._total if total is None else total

    def line(self) -> str:
        """What is done of all, how fast, and the time left."""
        seconds = time.monotonic() - self._start
        of = f" of {self._total}" if self._total else ""
        line = f"{self._doing}: {self._done}{of}"
        if self._done and seconds > 0:
            rate = self._done / seconds
            line += f", {rate:.2f} a second"
            if self._total:
                line += f", {_clock((self._total - self._done) / rate)} left"
        return line

    def _run(self) -> None:
        while not self._ended.wait(self._every):
            self._write(self.line())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
