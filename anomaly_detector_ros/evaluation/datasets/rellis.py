"""RELLIS-3D (Jiang et al. 2021): camera frames with id labels, by sequence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.evaluation.datasets.base import (
    DATASETS,
    Classes,
    Dataset,
    Layout,
    pairs_below,
    read_ids,
)
from anomaly_detector_ros.runtime.progress import Progress

IMAGES, LABELS = "pylon_camera_node", "pylon_camera_node_label_id"
MIN_OOD_SHARE = 0.00025
"""From this share of anomalous pixels on an image counts as out of distribution."""

CLASSES = Classes.named(
    {
        0: "void",
        1: "dirt",
        3: "grass",
        4: "tree",
        5: "pole",
        6: "water",
        7: "sky",
        8: "vehicle",
        9: "object",
        10: "asphalt",
        12: "building",
        15: "log",
        17: "person",
        18: "fence",
        19: "bush",
        23: "concrete",
        27: "barrier",
        31: "puddle",
        33: "mud",
        34: "rubble",
    },
    anomalous=("vehicle", "person", "barrier", "rubble"),
)
# Ids without a name of their own, which the data set's benchmark code counts as grass and water.
_SYNONYMS = {29: 3, 30: 3, 32: 6}


@DATASETS.register("rellis")
@dataclass(frozen=True)
class Rellis(Layout):
    """``<sequence>/pylon_camera_node/*.jpg`` with ``<sequence>/pylon_camera_node_label_id/*.png``.

    The root is the folder of the sequences, the one above it (the download's ``Rellis-3D`` is then
    its only level), or a single sequence. The split train is what does not count as out of
    distribution, ood what does: the lists of files that come with the data set are not read.
    """

    name = "rellis"
    splits = ("all", "train", "ood")
    evaluated_split = "ood"

    def open(self, progress: Progress | None = None) -> Dataset:
        """See `Layout`."""
        pairs = [
            pair
            for sequence in _sequences(self.root)
            for pair in pairs_below(sequence / IMAGES, sequence / LABELS)
        ]
        dataset = Dataset(
            self.name, self.root, CLASSES, pairs, _read, _counts_as_ood, index=self.index()
        )
        if self.split in (None, "all"):
            return dataset
        return dataset.select(ood=self.split == "ood", progress=progress)


def _sequences(root: Path) -> list[Path]:
    for pattern in (IMAGES, f"*/{IMAGES}", f"Rellis-3D/*/{IMAGES}"):
        found = sorted(folder.parent for folder in root.glob(pattern) if folder.is_dir())
        if found:
            return found
    raise UserError(f"no '<sequence>/{IMAGES}' in '{root}': give the folder of the sequences")


def _read(file: Path) -> np.ndarray:
    labels = read_ids(file)
    for id_, same in _SYNONYMS.items():
        labels[labels == id_] = same
    return labels


def _counts_as_ood(anomalous: int, pixels: int) -> bool:
    return anomalous / pixels >= MIN_OOD_SHARE
