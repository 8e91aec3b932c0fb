"""Yamaha-CMU Off-Road (YCOR): id labels, one folder for each part."""

from __future__ import annotations

from pathlib import Path

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.evaluation.datasets.classes import Classes
from anomaly_detector_ros.evaluation.datasets.labelled import (
    Dataset,
    Progress,
    pairs_below,
    unknown_split,
)

SPLITS = ("train", "val", "test")
CLASSES = Classes.named(
    {
        0: "void",
        1: "sky",
        2: "rough_trail",
        3: "smooth_trail",
        4: "traversable_grass",
        5: "high_vegetation",
        6: "low_vegetation",
        7: "puddle",
        8: "obstacle",
    },
    anomalous=("obstacle",),
)


def load_ycor(root: Path, split: str | None = None, progress: Progress | None = None) -> Dataset:
    """``images/*.jpg`` and ``labels/*.png`` with ids; obstacles are anomalies.

    Args:
        root: one part, or with a split the folder that holds the parts.
        split: train, val or test, a folder below the root.
        progress: not called; no label needs to be read.

    Raises:
        UserError: an unknown split; a missing or empty folder, a missing label.
    """
    if split is not None and split not in SPLITS:
        raise unknown_split("ycor", split, SPLITS)
    part = root / split if split else root
    if not split and not (part / "images").is_dir():
        raise UserError(
            f"'{root / 'images'}' is not a folder: give a part of YCOR as root, "
            f"or one of the splits {', '.join(SPLITS)}"
        )
    return Dataset("ycor", part, CLASSES, pairs_below(part / "images", part / "labels"))
