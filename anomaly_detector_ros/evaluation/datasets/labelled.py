"""Labelled images and sets of them, whatever their layout on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.evaluation.datasets.classes import Classes
from anomaly_detector_ros.evaluation.datasets.labels import read_ids
from anomaly_detector_ros.imaging.images import find_images, read_rgb

Progress = Callable[[int, int], None]
"""Called with the number of label files read and their total."""


@dataclass(frozen=True)
class LabelledImage:
    """One image and its truth.

    Attributes:
        name: of the image file, without suffix.
        image: uint8 RGB (H, W, 3).
        labels: uint8 (H, W), class ids.
        anomaly: bool (H, W), what is out of distribution.
        valid: bool (H, W), False where the truth is void.
        file: of the image.
    """

    name: str
    image: np.ndarray
    labels: np.ndarray
    anomaly: np.ndarray
    valid: np.ndarray
    file: Path


class Dataset:
    """Labelled images in a fixed order, read when asked for: one is in memory at a time.

    Args:
        name: of the layout, as `open_dataset` takes it.
        root: directory of the data set.
        classes: what the label ids mean.
        pairs: image file and label file of each image.
        read: reads a label file: uint8 (H, W), class ids.
        counts_as_ood: whether an image counts as out of distribution as a whole, from where it is
            anomalous, bool (H, W). By default one such pixel is enough.
        ood: whether all images count as out of distribution, or none, where that is known.

    Raises:
        UserError: no image, or one without a label file.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        classes: Classes,
        pairs: Sequence[tuple[Path, Path]],
        read: Callable[[Path], np.ndarray] = read_ids,
        counts_as_ood: Callable[[np.ndarray], bool] = np.any,
        ood: bool | None = None,
    ) -> None:
        if not pairs:
            raise UserError(f"no such images in '{root}': check the folder and the split")
        for image, label in pairs:
            if not label.is_file():
                raise UserError(f"no readable label '{label}' for image '{image}': add it")
        self.name, self.root, self.classes = name, root, classes
        self._pairs = list(pairs)
        self._read, self._counts_as_ood, self._ood = read, counts_as_ood, ood

    def __len__(self) -> int:
        return len(self._pairs)

    def __iter__(self) -> Iterator[LabelledImage]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> LabelledImage:
        """One image and its truth.

        Raises:
            UserError: a file that cannot be read, an unknown label, or sizes that differ.
        """
        file, label_file = self._pairs[index]
        image, labels = read_rgb(file), self.labels(index)
        if labels.shape != image.shape[:2]:
            raise UserError(
                f"label '{label_file}' is {labels.shape}, its image {image.shape[:2]}: "
                "labels are as large as their images"
            )
        valid = ~np.isin(labels, list(self.classes.void))
        return LabelledImage(file.stem, image, labels, self._anomaly(labels), valid, file)

    def labels(self, index: int) -> np.ndarray:
        """The class ids of one image alone: uint8 (H, W).

        Raises:
            UserError: a file that cannot be read, or an unknown label.
        """
        file = self._pairs[index][1]
        labels = self._read(file)
        known = np.isin(labels, list(self.classes.names))
        if not known.all():
            row, column = np.argwhere(~known)[0]
            raise UserError(
                f"label '{file}' has id {labels[row, column]} at row {row}, column {column}: "
                f"{self.name} knows {', '.join(map(str, sorted(self.classes.names)))}"
            )
        return labels

    def image_files(self) -> list[Path]:
        """The image files in order."""
        return [image for image, _ in self._pairs]

    def class_frequencies(self, progress: Progress | None = None) -> dict[int, float]:
        """The share of these images that hold each class, [0, 1] by id, as the paper weights them.

        Raises:
            UserError: a label that cannot be read, or an unknown one.
        """
        counts = dict.fromkeys(sorted(self.classes.names), 0)
        for labels in self._all_labels(progress):
            for id_ in np.unique(labels):
                counts[int(id_)] += 1
        return {id_: count / len(self) for id_, count in counts.items()}

    def select(self, *, ood: bool, progress: Progress | None = None) -> Dataset:
        """The images that count as out of distribution, or those that do not.

        Reads every label, unless the set is such a selection already.

        Raises:
            UserError: there is none, a label that cannot be read, or an unknown one.
        """
        if self._ood is ood:
            return self
        flags = [
            bool(self._counts_as_ood(self._anomaly(labels)))
            for labels in self._all_labels(progress)
        ]
        pairs = [pair for pair, flag in zip(self._pairs, flags, strict=True) if flag == ood]
        if not pairs:
            raise UserError(
                f"none of the {len(self)} images in '{self.root}' "
                f"{'counts as out of distribution' if ood else 'is nominal'}: choose another split"
            )
        return Dataset(
            self.name, self.root, self.classes, pairs, self._read, self._counts_as_ood, ood
        )

    def _anomaly(self, labels: np.ndarray) -> np.ndarray:
        return np.isin(labels, list(self.classes.anomalous))

    def _all_labels(self, progress: Progress | None) -> Iterator[np.ndarray]:
        for i in range(len(self)):
            yield self.labels(i)
            if progress:
                progress(i + 1, len(self))


def pairs_below(images: Path, labels: Path) -> list[tuple[Path, Path]]:
    """Every picture below a folder with the PNG file of the same path below another.

    Raises:
        UserError: the first folder does not exist or holds no picture.
    """
    return [
        (file, (labels / file.relative_to(images)).with_suffix(".png"))
        for file in find_images(images)
    ]


def unknown_split(name: str, split: str, splits: Sequence[str]) -> UserError:
    """The user's error for a split that the data set does not have."""
    return UserError(f"{name} has no split '{split}': give one of {', '.join(splits)}")
