"""What became of the frames that a command was given: nothing is lost unsaid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from anomaly_detector_ros.errors import UserError, one_line

_NAMED = 3
_T = TypeVar("_T")


@dataclass
class Skipped:
    """Frames skipped for one reason.

    Attributes:
        count: of all.
        first: names of the first few and what was wrong, as text.
    """

    count: int = 0
    first: list[str] = field(default_factory=list)


class Tally:
    """Counts frames as processed or skipped, and sources that are not whole.

    Args:
        stop: raise an error at the first bad frame or source, rather than count it.

    Attributes:
        processed: frames that came through.
        skipped: frames by reason.
        failed: sources that cannot be read, or of which more was declared than read, and why.
    """

    def __init__(self, *, stop: bool = False) -> None:
        self.stop = stop
        self.processed = 0
        self.skipped: dict[str, Skipped] = {}
        self.failed: dict[str, str] = {}

    @property
    def read(self) -> int:
        """Frames that were there, good or bad."""
        return self.processed + self.count_skipped

    @property
    def count_skipped(self) -> int:
        """Frames that were skipped, of all reasons."""
        return sum(each.count for each in self.skipped.values())

    def skip(self, reason: str, name: str, error: Exception | None = None) -> None:
        """Count a frame that is left out; a bad one, with an error, raises it where asked to.

        Raises:
            UserError: the tally is to stop at errors.
        """
        if error is not None and self.stop:
            why = one_line(error)
            raise UserError(why if name in why else f"{name}: {why}") from error
        skipped = self.skipped.setdefault(reason, Skipped())
        skipped.count += 1
        if len(skipped.first) < _NAMED:
            why = "" if error is None else one_line(error)
            skipped.first.append(why if name in why else f"{name}: {why}" if why else name)

    def fail(self, source: str, error: Exception) -> None:
        """Note a source that is not whole.

        Raises:
            UserError: the tally is to stop at errors.
        """
        if self.stop:
            raise UserError(one_line(error)) from error
        self.failed[source] = one_line(error)

    def tried(self, name: str, work: Callable[..., _T], *arguments: Any) -> _T | None:
        """What models make of a frame; None, and the frame is skipped, where they fail.

        Raises:
            UserError: they fail, and the tally is to stop at errors.
        """
        try:
            return work(*arguments)
        except Exception as error:  # models and the libraries below them raise many kinds
            self.skip("failed in the models", name, error)
            return None

    def lines(self) -> list[str]:
        """The counts, and below them the first few frames skipped for each reason, and why."""
        reasons = ", ".join(f"{each.count} {reason}" for reason, each in self.skipped.items())
        skipped = f"{self.count_skipped} skipped" + (f" ({reasons})" if reasons else "")
        lines = [f"{self.read} read, {self.processed} processed, {skipped}"]
        for reason, each in self.skipped.items():
            more = each.count - len(each.first)
            if each.first:
                shown = "; ".join([*each.first, *([f"and {more} more"] if more else [])])
                lines.append(f"{reason}: {shown}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        counts = {reason: each.count for reason, each in self.skipped.items()}
        return {"read": self.read, "processed": self.processed, "skipped": counts}

    @property
    def state(self) -> dict[str, Any]:
        """All of it, as JSON has it, for `add`."""
        skipped = {reason: [each.count, each.first] for reason, each in self.skipped.items()}
        return {"processed": self.processed, "skipped": skipped, "failed": self.failed}

    def add(self, state: dict[str, Any]) -> None:
        """Take in the `state` of a tally of frames behind these."""
        self.processed += state["processed"]
        for reason, (count, first) in state["skipped"].items():
            skipped = self.skipped.setdefault(reason, Skipped())
            skipped.count += count
            skipped.first = [*skipped.first, *first][:_NAMED]
        self.failed |= state["failed"]

    def check(self) -> None:
        """Raises UserError where a source is not whole, or not one frame came through."""
        if self.failed:
            first = next(iter(self.failed.values()))
            count = len(self.failed)
            raise UserError(first if count == 1 else f"{count} sources are not whole: {first}")
        if not self.processed:
            first = next((e.first[0] for e in self.skipped.values()), "there was none")
            raise UserError(f"no frame could be processed: {first}")
