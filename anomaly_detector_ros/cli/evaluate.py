"""`anomaly-detector evaluate`: metrics on labelled images."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from anomaly_detector_ros.cli.common import (
    DeviceOption,
    JsonOption,
    OfflineOption,
    ProfileOption,
    load_detector,
    progress_bar,
    write_atomically,
)
from anomaly_detector_ros.profiles import DEFAULT_PROFILE

if TYPE_CHECKING:
    from anomaly_detector_ros.evaluation.evaluate import Row


class Dataset(str, Enum):
    """Layouts of labelled images."""

    YCOR = "ycor"
    FOLDER = "folder"


def evaluate(
    root: Annotated[Path, typer.Option(help="Directory of the data set.")],
    dataset: Annotated[
        Dataset, typer.Option(help="ycor: images/, labels/; folder: images/, masks/ (255 void).")
    ] = Dataset.FOLDER,
    output: Annotated[Path | None, typer.Option(help="JSON file to write the results to.")] = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    device: DeviceOption = "auto",
    offline: OfflineOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a profile on labelled images: AUC-PR, AUROC, FPR at 95% TPR, component F1*.

    Beside the profile stand three references: the colour difference of the same edits, random
    scores, and the profile's analysis of a perfect edit (labelled anomalies inpainted).

    Example: anomaly-detector evaluate --dataset ycor --root ycor/test --output results.json
    """
    from anomaly_detector_ros.evaluation.datasets import DATASETS, count_images
    from anomaly_detector_ros.evaluation.evaluate import evaluate as run

    total = count_images(root)
    detector = load_detector(profile, device, offline=offline)
    with progress_bar("images", total) as advance:
        rows = run(detector, DATASETS[dataset.value](root), progress=lambda n: advance(n, total))
    results = [_plain(row) for row in rows]
    text = json.dumps({"profile": profile, "images": total, "rows": results}, indent=2)
    if output:
        write_atomically(output, (text + "\n").encode())
    if as_json:
        typer.echo(text)
    else:
        _print(rows)


def _plain(row: Row) -> dict[str, str | float | None]:
    """A row for JSON, which knows no NaN."""
    values = {**asdict(row.pixels), "f1_star": row.f1_star}
    return {"name": row.name, **{k: None if math.isnan(v) else v for k, v in values.items()}}


def _print(rows: list[Row]) -> None:
    from rich.console import Console

    table = Table()
    for column in ("", "AUC-PR", "AUROC", "FPR95", "F1*"):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        p = row.pixels
        values = (p.auc_pr, p.auroc, p.fpr95, row.f1_star)
        table.add_row(row.name, *(f"{value:.3f}" for value in values))
    Console().print(table)
