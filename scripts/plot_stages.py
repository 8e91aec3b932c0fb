"""Draws the stages of a frame as stacked bars, from what `anomaly-detector benchmark` wrote."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

STAGES = ("features", "synthesis", "upsampling", "segmentation", "scoring")
COLOURS = ("#4477aa", "#228833", "#bbbbbb", "#ccbb44", "#aa3377")


def main() -> None:
    """Reads ``LABEL=FILE`` for each bar, from the top down."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("bars", nargs="+", metavar="LABEL=FILE")
    options.add_argument("--output", type=Path, required=True)
    given = options.parse_args()
    figure, axes = plt.subplots(figsize=(8, 0.6 + 0.45 * len(given.bars)))
    for row, bar in enumerate(given.bars):
        label, _, file = bar.partition("=")
        found = json.loads(Path(file).read_text())["profiles"][0]["stages"]
        left = 0.0
        for stage, colour in zip(STAGES, COLOURS, strict=True):
            seconds = found.get(stage, {"median": 0.0})["median"]
            named = stage if row == 0 else None
            axes.barh(row, seconds, left=left, color=colour, label=named)
            left += seconds
        whole = found["end to end"]["median"]
        axes.text(left, row, f" {whole:.2f} s", va="center")
        axes.text(0, row, f"{label} ", va="center", ha="right")
    axes.set_yticks([])
    axes.invert_yaxis()
    axes.set_xlim(0, axes.get_xlim()[1] * 1.05)
    axes.set_xlabel("seconds a frame, median")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.legend(ncols=len(STAGES), loc="lower center", bbox_to_anchor=(0.45, 1.0), frameon=False)
    figure.savefig(given.output, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
