"""How long work tells how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Hears of the progress of long work; `cli.common.progress_bar` gives one."""

    def __call__(self, done: int, total: int | None = None, doing: str | None = None) -> None:
        """Take what is done and, if they change, the total and what is being done."""


def silent(done: int, total: int | None = None, doing: str | None = None) -> None:
    """Tells nobody."""
