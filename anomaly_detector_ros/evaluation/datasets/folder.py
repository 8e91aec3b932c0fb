"""A folder of one's own images and masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.evaluation.datasets.classes import Classes
from anomaly_detector_ros.evaluation.datasets.labelled import Dataset, Progress, pairs_below
from anomaly_detector_ros.evaluation.datasets.labels import read_ids

NOMINAL, ANOMALY, VOID = 0, 1, 255
CLASSES = Classes.named({NOMINAL: "nominal", ANOMALY: "anomaly", VOID: "void"}, ("anomaly",))


def load_folder(root: Path, split: str | None = None, progress: Progress | None = None) -> Dataset:
    """``images/*`` and ``masks/<stem>.png``: 0 nominal, 255 void, anything else anomalous.

    Args:
        root: the folder that holds ``images`` and ``masks``.
        split: must be None; such a folder is one part.
        progress: not called; no mask needs to be read.

    Raises:
        UserError: a split; a missing or empty folder, a missing mask.
    """
    if split is not None:
        raise UserError(f"a folder has no split '{split}': leave it out, or give another root")
    return Dataset("folder", root, CLASSES, pairs_below(root / "images", root / "masks"), _read)


def _read(file: Path) -> np.ndarray:
    """Ids of a mask: every anomaly becomes `ANOMALY`, whatever its value."""
    mask = read_ids(file)
    mask[(mask != NOMINAL) & (mask != VOID)] = ANOMALY
    return mask
