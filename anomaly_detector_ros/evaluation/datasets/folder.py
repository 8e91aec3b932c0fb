"""A folder of one's own images and masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anomaly_detector_ros.evaluation.datasets.base import (
    DATASETS,
    Classes,
    Dataset,
    Layout,
    pairs_below,
    read_ids,
)
from anomaly_detector_ros.runtime.progress import Progress

NOMINAL, ANOMALY, VOID = 0, 1, 255
CLASSES = Classes.named({NOMINAL: "nominal", ANOMALY: "anomaly", VOID: "void"}, ("anomaly",))


@DATASETS.register("folder")
@dataclass(frozen=True)
class Folder(Layout):
    """``images/*`` and ``masks/<stem>.png``: 0 nominal, 255 void, anything else anomalous."""

    name = "folder"

    def open(self, progress: Progress | None = None) -> Dataset:
        """See `Layout`; no mask needs to be read."""
        pairs = pairs_below(self.root / "images", self.root / "masks")
        return Dataset(self.name, self.root, CLASSES, pairs, _read, index=self.index())


def _read(file: Path) -> np.ndarray:
    """Ids of a mask: every anomaly becomes `ANOMALY`, whatever its value."""
    mask = read_ids(file)
    mask[(mask != NOMINAL) & (mask != VOID)] = ANOMALY
    return mask
