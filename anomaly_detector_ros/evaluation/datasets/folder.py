"""A folder of one's own images and masks."""

from __future__ import annotations

from collections.abc import Callable
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
from anomaly_detector_ros.imaging.images import read_rgb, say_once
from anomaly_detector_ros.runtime.progress import Progress
from anomaly_detector_ros.sources.folders import find_images

NOMINAL, ANOMALY, VOID = 0, 1, 255
CLASSES = Classes.named({NOMINAL: "nominal", ANOMALY: "anomaly", VOID: "void"}, ("anomaly",))


@DATASETS.register("folder")
@dataclass(frozen=True)
class Folder(Layout):
    """``images/*`` and ``masks/<stem>.png``: 0 nominal, 255 void, anything else anomalous.

    Where the masks hold nothing but 0 and 255, 255 is the anomaly: so most tools save two classes.
    Without ``masks/`` all images are nominal.
    """

    name = "folder"

    def open(self, progress: Progress | None = None) -> Dataset:
        """See `Layout`; what the masks hold is read once."""
        images, masks = self.root / "images", self.root / "masks"
        read: Callable[[Path], np.ndarray]
        if not masks.exists():
            pairs = [(image, image) for image in find_images(images)]
            read, meaning = _all_nominal, "no masks"
        else:
            pairs = pairs_below(images, masks)
            files = [mask for _, mask in pairs if mask.is_file()]
            held = set().union(*self.index("values").class_pixels(files, read_ids, progress))
            two = VOID in held and held <= {NOMINAL, VOID}
            if two:
                say_once(f"'{masks}'", "masks of 0 and 255 alone: 255 is the anomaly, none is void")
            read, meaning = (_read_two, "two") if two else (_read, "three")
        return Dataset(self.name, self.root, CLASSES, pairs, read, index=self.index(meaning))


def _read(file: Path) -> np.ndarray:
    """Ids of a mask: every anomaly becomes `ANOMALY`, whatever its value."""
    mask = read_ids(file)
    mask[(mask != NOMINAL) & (mask != VOID)] = ANOMALY
    return mask


def _read_two(file: Path) -> np.ndarray:
    """Ids of a mask without void."""
    return np.where(read_ids(file) == NOMINAL, NOMINAL, ANOMALY).astype(np.uint8)


def _all_nominal(image: Path) -> np.ndarray:
    """Ids for an image without a mask."""
    return np.full(read_rgb(image).shape[:2], NOMINAL, np.uint8)
