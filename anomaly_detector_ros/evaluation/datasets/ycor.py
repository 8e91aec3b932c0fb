"""Yamaha-CMU Off-Road (YCOR): id labels, one folder for each part."""

from __future__ import annotations

from dataclasses import dataclass

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.evaluation.datasets.base import (
    DATASETS,
    Classes,
    Dataset,
    Layout,
    pairs_below,
)
from anomaly_detector_ros.runtime.progress import Progress

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


@DATASETS.register("ycor")
@dataclass(frozen=True)
class Ycor(Layout):
    """``images/*.jpg`` and ``labels/*.png`` with ids; obstacles are anomalies.

    The root is one part, or with a split the folder that holds the parts.
    """

    name = "ycor"
    splits = ("train", "val", "test")

    def open(self, progress: Progress | None = None) -> Dataset:
        """See `Layout`; no label needs to be read."""
        part = self.root / self.split if self.split else self.root
        if not self.split and not (part / "images").is_dir():
            raise UserError(
                f"'{part / 'images'}' is not a folder: give a part of YCOR as root, "
                f"or one of the splits {', '.join(self.splits)}"
            )
        pairs = pairs_below(part / "images", part / "labels")
        return Dataset(self.name, part, CLASSES, pairs, index=self.index())
