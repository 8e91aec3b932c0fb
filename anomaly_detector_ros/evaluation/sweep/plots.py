"""What a sweep found as pictures: quality against network passes, and against training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from anomaly_detector_ros.evaluation.sweep.run import QUALITIES, Measured, SweepReport
from anomaly_detector_ros.evaluation.table.methods import row_of
from anomaly_detector_ros.evaluation.table.report import number
from anomaly_detector_ros.runtime.files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINT, _OPTIMAL = "0.6", "C0"
_NUMBER_HEIGHT = 0.027  # of the axes
_SHOWN_NAME = 60


def plot_pareto(report: SweepReport, file: Path) -> None:
    """Writes a PNG: AUC-PR and F1* of all variants over their network passes, on a log axis.

    Variants that no cheaper or equally cheap one beats are joined; numbers are those of the table,
    and the legend names them. References are horizontal lines.

    Raises:
        OSError: the file cannot be written.
    """
    # Not pyplot, which would look for a display and keep every figure.
    from matplotlib.figure import Figure

    names = [_legend_line(index, each) for index, each in enumerate(report.measured)]
    figure = Figure(figsize=(14, 6 + 0.19 * math.ceil(len(names) / 2)), layout="constrained")
    for axes, quality in zip(figure.subplots(1, 2), QUALITIES, strict=True):
        _draw_pareto(axes, report, quality)
    _list_names(figure, names)
    replace_file(file, lambda path: figure.savefig(path, format="png", dpi=120))


def plot_training(report: SweepReport, file: Path) -> bool:
    """Writes a PNG: AUC-PR, with its 95% interval, and F1* over the images seen in training.

    One line for each group of variants that differ in their denoiser alone.

    Returns:
        False, and no file, where fewer than two variants are snapshots of a training run.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    groups = _snapshots(report.measured)
    if sum(map(len, groups.values())) < 2:
        return False
    figure = Figure(figsize=(13, 5), layout="constrained")
    for axes, quality in zip(figure.subplots(1, 2), QUALITIES, strict=True):
        for index, (name, snapshots) in enumerate(groups.items()):
            seen = [each.images_seen for each in snapshots]
            values = [getattr(each.metrics, quality) for each in snapshots]
            axes.plot(seen, values, "o-", color=f"C{index % 10}", label=name)
            bounds = [each.metrics.intervals.get(quality, (math.nan,) * 2) for each in snapshots]
            low, high = zip(*bounds, strict=True)
            axes.fill_between(seen, low, high, color=f"C{index % 10}", alpha=0.15, linewidth=0)
        _draw_references(axes, report, quality)
        axes.set(xlabel="Images seen in training", ylabel=QUALITIES[quality])
        axes.margins(y=0.08)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    replace_file(file, lambda path: figure.savefig(path, format="png", dpi=120))
    return True


def _draw_pareto(axes: Axes, report: SweepReport, quality: str) -> None:
    x = np.array([each.cost.passes for each in report.measured], dtype=float)
    y = np.array([getattr(each.metrics, quality) for each in report.measured])
    optimal = np.array([quality in each.pareto for each in report.measured])
    _draw_references(axes, report, quality)
    axes.scatter(x, y, s=22, color=_POINT, zorder=3)
    order = np.flatnonzero(optimal)[np.argsort(x[optimal], kind="stable")]
    axes.plot(x[order], y[order], "o-", color=_OPTIMAL, zorder=4, label="no cheaper one is better")
    axes.scatter(
        x[:1], y[:1], s=240, marker="*", color="C3", zorder=5, label=report.measured[0].variant.name
    )
    axes.set(xscale="log", xlabel="Network passes an image", ylabel=QUALITIES[quality])
    axes.set_xlim(x.min() / 1.3, x.max() * 1.5)
    tops = [y[np.isfinite(y)].max(initial=0.0)]
    tops += [_or_zero(getattr(metrics, quality)) for metrics in report.references.values()]
    axes.set_ylim(0, max(0.05, 1.1 * max(tops)))
    _label_passes(axes, x)
    axes.grid(alpha=0.3)
    _number_points(axes, x, y, optimal)
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def _draw_references(axes: Axes, report: SweepReport, quality: str) -> None:
    for index, (name, metrics) in enumerate(report.references.items()):
        value = getattr(metrics, quality)
        axes.axhline(
            value,
            color=f"C{(index + 4) % 10}",
            linestyle="--",
            linewidth=1.2,
            label=f"{row_of(name).title} {number(value)}",
        )


def _label_passes(axes: Axes, x: np.ndarray) -> None:
    """Ticks where there are variants, as far as their labels have room."""
    from matplotlib.ticker import NullLocator

    shown: list[float] = []
    for passes in np.unique(x).tolist():
        if not shown or passes >= 1.15 * shown[-1]:
            shown.append(passes)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(shown, [f"{passes:g}" for passes in shown])


def _number_points(axes: Axes, x: np.ndarray, y: np.ndarray, optimal: np.ndarray) -> None:
    """Each point's number to its right; where points are close, pushed apart, with a thin line."""
    bottom, top = axes.get_ylim()
    apart = _NUMBER_HEIGHT * (top - bottom)
    for passes in np.unique(x):
        column = [i for i in np.flatnonzero(x == passes) if np.isfinite(y[i])]
        column.sort(key=lambda i: y[i])
        heights = pushed_apart([float(y[i]) for i in column], apart)
        for i, height in zip(column, heights, strict=True):
            axes.annotate(
                str(i),
                (x[i], y[i]),
                xytext=(x[i] * 1.06, height),
                fontsize=8,
                va="center",
                color="black" if optimal[i] or i == 0 else "0.45",
                fontweight="bold" if optimal[i] else "normal",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.4},
                arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.5},
                zorder=6,
            )


def pushed_apart(values: Sequence[float], apart: float) -> list[float]:
    """Rising values moved as little as is needed for neighbours to be so far apart.

    >>> pushed_apart([1.0, 1.0, 5.0], 1.0)
    [0.5, 1.5, 5.0]
    """
    # Runs of touching values, each as wide as they need and about their mean.
    runs: list[list[float]] = []
    for value in values:
        runs.append([value])
        while len(runs) > 1 and _lowest(runs[-1], apart) < _lowest(runs[-2], apart) + apart * len(
            runs[-2]
        ):
            runs[-2:] = [[*runs[-2], *runs[-1]]]
    return [_lowest(run, apart) + apart * i for run in runs for i in range(len(run))]


def _lowest(run: Sequence[float], apart: float) -> float:
    return sum(run) / len(run) - apart * (len(run) - 1) / 2


def _list_names(figure: Figure, names: Sequence[str]) -> None:
    """The names in two columns below the plots."""
    from matplotlib.lines import Line2D

    empty = [Line2D([], [], linestyle="") for _ in names]
    figure.legend(
        empty,
        names,
        loc="outside lower center",
        ncols=2,
        fontsize=8,
        frameon=False,
        handlelength=0,
        handletextpad=0,
    )


def _legend_line(index: int, each: Measured) -> str:
    name = each.variant.name
    if len(name) > _SHOWN_NAME:
        name = f"{name[: _SHOWN_NAME - 1]}\N{HORIZONTAL ELLIPSIS}"
    return f"{index}  {name}"


def _snapshots(measured: Sequence[Measured]) -> Mapping[str, list[Measured]]:
    """Variants whose denoisers say how much they have seen, by what else makes them differ."""
    groups: dict[str, list[Measured]] = {}
    for each in measured:
        if each.images_seen is not None:
            others = {k: v for k, v in each.variant.changes.items() if k != "denoiser.model"}
            name = ", ".join(f"{setting} {value}" for setting, value in others.items())
            groups.setdefault(name or "snapshots", []).append(each)
    return {
        name: sorted(group, key=lambda each: each.images_seen or 0)
        for name, group in groups.items()
    }


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value
