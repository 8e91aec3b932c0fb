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
from anomaly_detector_ros.imaging.images import read_rgb
from anomaly_detector_ros.runtime.progress import Progress
from anomaly_detector_ros.sources.folders import find_images

NOMINAL, ANOMALY, VOID = 0, 1, 255
CLASSES = Classes.named({NOMINAL: "nominal", ANOMALY: "anomaly", VOID: "void"}, ("anomaly",))


@DATASETS.register("folder")
@dataclass(frozen=True)
class Folder(Layout):
    """``images/*`` and ``masks/<stem>.png``: 0 nominal, 255 void, anything else anomalous.

    Without ``masks/`` all images are nominal.
    """

    name = "folder"

    def open(self, progress: Progress | None = None) -> Dataset:
        """See `Layout`; no mask needs to be read."""
        images, masks = self.root / "images", self.root / "masks"
        if masks.exists():
            pairs, read = pairs_below(images, masks), _read
        else:
            pairs, read = [(image, image) for image in find_images(images)], _all_nominal
        return Dataset(self.name, self.root, CLASSES, pairs, read, index=self.index())


def _read(file: Path) -> np.ndarray:
    """Ids of a mask: every anomaly becomes `ANOMALY`, whatever its value."""
    mask = read_ids(file)
    mask[(mask != NOMINAL) & (mask != VOID)] = ANOMALY
    return mask


def _all_nominal(image: Path) -> np.ndarray:
    """Ids for an image without a mask."""
    return np.full(read_rgb(image).shape[:2], NOMINAL, np.uint8)
