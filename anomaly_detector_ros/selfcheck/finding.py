"""What the selfcheck found, and how it is told: for people in Markdown, for programs as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

Status = Literal["ok", "advice", "error", "skipped"]
MARKS: dict[Status, str] = {
    "ok": "ok",
    "advice": "**advice**",
    "error": "**ERROR**",
    "skipped": "skipped",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        section: what it belongs to.
        name: what was looked at.
        value: what was found.
        status: ``advice`` works and could be better; ``skipped`` was not looked at.
        remedy: what to change; there is one unless all is well.
    """

    section: str
    name: str
    value: str
    status: Status = "ok"
    remedy: str = ""

    def __post_init__(self) -> None:
        """Refuses trouble without a remedy."""
        if (self.status == "ok") == bool(self.remedy):
            raise ValueError(f"{self.name}: a remedy belongs to all that is not ok, and only there")


def to_dict(findings: Sequence[Finding]) -> dict[str, Any]:
    """For JSON; ``ok`` says whether there was no error."""
    return {
        "ok": not any(each.status == "error" for each in findings),
        "findings": [asdict(each) for each in findings],
    }


def markdown(findings: Sequence[Finding], command: str, seconds: float) -> str:
    """The report, a table a section, what to change first. The home directory is written as ~.

    Args:
        command: that was run.
        seconds: it took.
    """
    counts = {status: sum(each.status == status for each in findings) for status in MARKS}
    lines = [
        "# Selfcheck of anomaly_detector_ros",
        "",
        f"`{command}` took {seconds:.0f} s: {counts['ok']} ok, {counts['advice']} with advice, "
        f"{counts['error']} errors, {counts['skipped']} skipped.",
        "",
        "## What to change",
        "",
    ]
    order = ("error", "advice", "skipped")
    told = sorted((f for f in findings if f.status != "ok"), key=lambda f: order.index(f.status))
    changes = [f"- {MARKS[f.status]} {f.section}, {f.name}: {f.remedy}." for f in told]
    lines += changes or ["Nothing."]
    for section, group in groupby(findings, lambda each: each.section):
        lines += ["", f"## {section}", "", "| what | found | |", "| --- | --- | --- |"]
        lines += [f"| {_cell(f.name)} | {_cell(f.value)} | {MARKS[f.status]} |" for f in group]
    return "\n".join(lines).replace(str(Path.home()), "~") + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
