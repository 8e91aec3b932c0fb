"""The results of an evaluation as Markdown and as JSON."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from anomaly_detector_ros import __version__
from anomaly_detector_ros.evaluation.metrics.measures import Metrics, plain
from anomaly_detector_ros.evaluation.table.methods import ROWS, row_of
from anomaly_detector_ros.runtime.statistics import Interval

WEIGHTED = ("weighted AUC-PR", "weighted F1*")
COLUMNS = (
    "AUC-PR (AP)", "95% interval", "ours minus it", "AUROC", "FPR95", "F1* (SMIYC)",
    "AUC-PR (envelope)", *WEIGHTED,
)  # fmt: skip
"""Titles of the metrics; docs/evaluation.md says what each is."""

_LIBRARIES = ("torch", "diffusers", "timm", "open_clip_torch", "scikit-learn", "numpy")


@dataclass(frozen=True)
class Report:
    """What an evaluation found.

    Attributes:
        dataset: name of the data set.
        profile: name of the profile the rows are built around.
        seed: of baselines, edits and resampling.
        baselines: how they were made: a key of `methods.PRESETS`.
        metrics: by row.
        ours_minus: 95% intervals of each metric of the profile itself minus that of each other row,
            on the same resamples; none without the row "ours".
        not_run: why, by row.
        train_images: how many nominal images the baselines were fitted on.
        dataset_images: how many images the data set has, of which some may have been left out.
    """

    dataset: str
    profile: str
    seed: int
    metrics: Mapping[str, Metrics]
    not_run: Mapping[str, str]
    baselines: str = "ours"
    ours_minus: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    train_images: int = 0
    dataset_images: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "dataset": self.dataset,
            "profile": self.profile,
            "seed": self.seed,
            "baselines": self.baselines,
            "train_images": self.train_images,
            "dataset_images": self.dataset_images,
            "versions": versions(),
            "rows": [
                {
                    "name": name,
                    "title": row_of(name).title,
                    **metrics.to_dict(),
                    "ours_minus": plain(dict(self.ours_minus.get(name, {}))),
                }
                for name, metrics in self.metrics.items()
            ],
            "not_run": dict(self.not_run),
        }

    def to_markdown(self) -> str:
        """A table with the published numbers beside ours where the paper has them."""
        head, *rows = self.table()
        lines = [line(head), line(["---"] * len(head)), *map(line, rows)]
        lines += [f"\nNot run: {row_of(name).title}: {why}." for name, why in self.not_run.items()]
        if self._published():
            lines.append(
                "\nThe weighted columns alone are, most likely, the published metrics. Even these "
                "compare only as far as images and class frequencies are the paper's: what can be "
                "compared is the order of the rows, not their values."
            )
        lines += subset_note(self.metrics.values(), self.dataset_images)
        return "\n".join(lines) + "\n"

    def table(self) -> list[list[str]]:
        """The head and a row for each method, as text."""
        published = self._published()
        head = list(COLUMNS)
        if published:
            # Each beside the column that means the same.
            for column in WEIGHTED:
                head.insert(head.index(column) + 1, f"published {column}")
        paper = [name for name in ROWS if name in self.metrics]
        names = (*paper, *(name for name in self.metrics if name not in ROWS))
        return [["", *head], *(self._cells(name, published) for name in names)]

    def _published(self) -> bool:
        return any(self.dataset in row.published for row in ROWS.values())

    def margin(self, name: str) -> str:
        """The interval of "ours" minus a row, of average precision; empty where there is none."""
        return span(self.ours_minus.get(name, {}).get("auc_pr"))

    def _cells(self, name: str, published: bool) -> list[str]:
        m, row = self.metrics[name], row_of(name)
        cells = [
            row.title, number(m.auc_pr), span(m.intervals.get("auc_pr")), self.margin(name),
            number(m.auroc), number(m.fpr95), number(m.f1_star), number(m.envelope_auc_pr),
        ]  # fmt: skip
        pair = row.published.get(self.dataset)
        for i, ours in enumerate((m.weighted_auc_pr, m.weighted_f1_star)):
            cells.append(number(ours))
            if published:
                cells.append(number(pair[i]) if pair else "")
        return cells


def span(interval: Interval | None) -> str:
    """An interval in words; empty for none."""
    return f"{number(interval[0])} to {number(interval[1])}" if interval else ""


def number(value: float | None) -> str:
    """Three decimals, or n/a where there is no value."""
    return "n/a" if value is None or value != value else f"{value:.3f}"


def subset_note(measured: Iterable[Metrics], dataset_images: int) -> list[str]:
    """A line that says so where only a part of the data set was measured."""
    images = max((metrics.images for metrics in measured), default=dataset_images)
    if images >= dataset_images:
        return []
    return [f"\nMeasured on {images} of the data set's {dataset_images} images, evenly spread."]


def versions() -> dict[str, str]:
    """Of this package, Python and the libraries that the numbers depend on."""
    found = {"anomaly_detector_ros": __version__, "python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def line(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"
