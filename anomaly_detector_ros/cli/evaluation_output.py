"""What `anomaly-detector evaluate` writes and prints."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from anomaly_detector_ros.cli.common import (
    cannot_write,
    console,
    make_directory,
    write_atomically,
)

if TYPE_CHECKING:
    from anomaly_detector_ros.evaluation.metrics.measures import Metrics
    from anomaly_detector_ros.evaluation.run import Evaluation
    from anomaly_detector_ros.evaluation.sweep.run import SweepReport
    from anomaly_detector_ros.evaluation.table.report import Report


def write_rows(output: Path, report: Report, evaluation: Evaluation) -> None:
    """Curves, a gallery, a Markdown table, and JSON.

    Raises:
        UserError: one cannot be written.
    """
    make_directory(output.parent)
    stem = output.with_suffix("")
    try:
        evaluation.plot(Path(f"{stem}_curves.png"))
    except OSError as error:
        raise cannot_write(output, error) from error
    if "ours" in report.metrics:
        evaluation.gallery(Path(f"{stem}_gallery.jpg"))
    _write_tables(output, report)


def write_sweep(output: Path, report: SweepReport) -> None:
    """Quality against passes and training as plots, a Markdown table, and JSON.

    Raises:
        UserError: one cannot be written.
    """
    from anomaly_detector_ros.evaluation.sweep.plots import plot_pareto, plot_training

    make_directory(output.parent)
    stem = output.with_suffix("")
    try:
        plot_pareto(report, Path(f"{stem}_pareto.png"))
        plot_training(report, Path(f"{stem}_training.png"))
    except OSError as error:
        raise cannot_write(output, error) from error
    _write_tables(output, report)


def _write_tables(output: Path, report: Report | SweepReport) -> None:
    """The JSON file last: whoever finds it finds the others too."""
    write_atomically(output.with_suffix(".md"), report.to_markdown().encode())
    write_atomically(output, (json.dumps(report.to_dict(), indent=2) + "\n").encode())


def print_rows(report: Report) -> None:
    """One line for each row of the paper's table."""
    from anomaly_detector_ros.evaluation.table.report import number
    from anomaly_detector_ros.evaluation.table.rows import row_of

    columns = ("AUC-PR", "95%", "AUROC", "FPR95", "F1*", "weighted AUC-PR", "weighted F1*")
    table = Table("", *columns, title=f"{report.dataset}, profile {report.profile}", box=None)
    for name, found in report.metrics.items():
        weighted = (number(found.paper_auc_pr), number(found.paper_f1_star))
        table.add_row(row_of(name).title, *_quality(found), *weighted)
    _print(table)
    for name, why in report.not_run.items():
        console.print(f"not run: {row_of(name).title}: {why}", markup=False, soft_wrap=True)


def print_sweep(report: SweepReport) -> None:
    """One line for each variant, then the rows that were measured beside them."""
    from anomaly_detector_ros.evaluation.table.rows import row_of

    columns = ("AUC-PR", "95%", "AUROC", "FPR95", "F1*", "passes", "multiply-adds", "best in")
    images = report.measured[0].metrics.images
    title = f"{report.dataset}, {images} of {report.dataset_images} images, {report.profile}"
    table = Table("#", "variant", *columns, title=title, box=None)
    for index, each in enumerate(report.measured):
        cost = (str(each.cost.passes), f"{each.relative_multiply_adds:.2f}")
        table.add_row(str(index), each.variant.name, *_quality(each.metrics), *cost, each.best_in())
    for name, found in report.references.items():
        table.add_row("", row_of(name).title, *_quality(found))
    _print(table)


def _quality(found: Metrics) -> list[str]:
    from anomaly_detector_ros.evaluation.table.report import number

    low, high = found.intervals.get("auc_pr", (math.nan, math.nan))
    return [
        number(found.auc_pr), f"{number(low)}-{number(high)}", number(found.auroc),
        number(found.fpr95), number(found.f1_star),
    ]  # fmt: skip


def _print(table: Table) -> None:
    out = Console()
    # A pipe has no width of its own, and 80 columns are too few.
    (out if out.is_terminal else Console(width=160)).print(table)
