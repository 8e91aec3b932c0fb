"""`anomaly-detector selfcheck`: this machine, its accuracy and its speed, with remedies."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from anomaly_detector_ros.cli.common import JsonOption, console, write_atomically
from anomaly_detector_ros.errors import UserError

_STYLES = {"ok": "green", "advice": "yellow", "error": "red", "skipped": "dim"}


def selfcheck(
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Expect a GPU: run its tests, fail without one.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Within a minute: one profile, fewer measurements.")
    ] = False,
    as_json: JsonOption = False,
    output: Annotated[
        Path | None, typer.Option(help="Markdown file for the report, to attach to an issue.")
    ] = None,
) -> None:
    """Look at this machine and its installation, check accuracy and speed, say what to change.

    Nothing is fetched and nothing changed. Fails if something is wrong rather than slow or absent.

    Example: anomaly-detector selfcheck --quick --output report.md
    """
    from anomaly_detector_ros.selfcheck.finding import markdown, to_dict
    from anomaly_detector_ros.selfcheck.run import selfcheck as look

    begun, findings = time.monotonic(), []
    with console.status("looking at this machine") as status:
        for each in look(gpu=gpu, quick=quick):
            findings.append(each)
            status.update(f"{each.section}: after {each.name}")
            line = f"{each.status:8} {each.section}: {each.name}: {each.value}"
            line += f" -> {each.remedy}" if each.remedy else ""
            console.print(line, style=_STYLES[each.status], markup=False, soft_wrap=True)
    options = "".join(f" --{name}" for name, on in (("gpu", gpu), ("quick", quick)) if on)
    report = markdown(findings, f"anomaly-detector selfcheck{options}", time.monotonic() - begun)
    if output:
        write_atomically(output, report.encode())
    if as_json:
        typer.echo(json.dumps(to_dict(findings), indent=2))
    wrong = [each for each in findings if each.status == "error"]
    if wrong:
        raise UserError(f"{len(wrong)} wrong, the first: {wrong[0].name}: {wrong[0].remedy}")
