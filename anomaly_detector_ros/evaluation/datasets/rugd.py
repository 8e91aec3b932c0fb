"""RUGD (Wigness et al. 2019): frames and colour annotations, by scene."""

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
    read_colours,
)
from anomaly_detector_ros.runtime.progress import Progress

FRAMES, ANNOTATIONS = "RUGD_frames-with-annotations", "RUGD_annotations"
COLORMAP = "RUGD_annotation-colormap.txt"
ANOMALOUS = (
    "vehicle",
    "container/generic-object",
    "building",
    "bicycle",
    "person",
    "bridge",
    "picnic-table",
)
SCENES = {
    "train": (
        "park-2",
        "trail",
        *(f"trail-{number}" for number in (3, 4, 6, 9, 10, 11, 12, 14, 15)),
    ),
    "val": ("park-8", "trail-5"),
    "test": ("creek", "park-1", "trail-7", "trail-13"),
}
MIN_OOD_PIXELS = 100
"""From this number of anomalous pixels on an image counts as out of distribution."""

_UNKNOWN = 255


@DATASETS.register("rugd")
@dataclass(frozen=True)
class Rugd(Layout):
    """``RUGD_frames-with-annotations`` and ``RUGD_annotations`` below the root, a folder a scene.

    The splits train and val are the images of their scenes that do not count as out of
    distribution; test is every image of its scenes; ood is what counts as out of distribution in
    any of these 17 scenes, on which the paper evaluates. Any other scene, such as RUGD's 18th,
    village, is only in all.
    """

    name = "rugd"
    splits = (*SCENES, "ood", "all")
    evaluated_split = "ood"
    nominal_split = "train"

    def open(self, progress: Progress | None = None) -> Dataset:
        """See `Layout`.

        Raises:
            UserError: a missing or malformed colormap, or a colour that it lacks; see `Layout`.
        """
        known = tuple(scene for part in SCENES.values() for scene in part)
        scenes = known if self.split == "ood" else SCENES.get(self.split or "")
        pairs = [
            (frame, annotation)
            for frame, annotation in pairs_below(self.root / FRAMES, self.root / ANNOTATIONS)
            if scenes is None or frame.parent.name in scenes
        ]
        colormap = AnnotationColours.of(self.root)
        dataset = Dataset(
            self.name, self.root, colormap.classes, pairs, colormap.decode, _counts_as_ood,
            index=self.index(colormap.text),
        )  # fmt: skip
        if self.split in (None, "test", "all"):
            return dataset
        return dataset.select(ood=self.split == "ood", progress=progress)


def _counts_as_ood(anomalous: int, pixels: int) -> bool:
    return anomalous >= MIN_OOD_PIXELS


class AnnotationColours:
    """The colormap file: what the colours of the annotations stand for.

    Args:
        file: lines ``id name red green blue``; ids below 255, no id, name or colour twice.

    Attributes:
        text: of the file.
        classes: the ids and names of the file, the paper's out-of-distribution classes among them.

    Raises:
        UserError: missing or malformed, or a class that the paper names is not in it.
    """

    def __init__(self, file: Path) -> None:
        try:
            self.text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read colormap '{file}': take RUGD's own file") from error
        self.file = file
        names: dict[int, str] = {}
        # An id for every 24-bit colour: one look-up a pixel, at 16 MB.
        self._ids = np.full(1 << 24, _UNKNOWN, np.uint8)
        for number, line in enumerate(self.text.splitlines(), 1):
            if not line.strip():
                continue
            id_, name, colour = self._parse(number, line)
            if id_ in names or name in names.values() or self._ids[colour] != _UNKNOWN:
                raise UserError(
                    f"colormap '{file}' line {number} repeats an id, name or colour: "
                    "take RUGD's own file"
                )
            names[id_], self._ids[colour] = name, id_
        try:
            self.classes = Classes.named(names, ANOMALOUS)
        except KeyError as error:
            raise UserError(
                f"colormap '{file}' lacks class {error}: take RUGD's own file"
            ) from error

    @classmethod
    def of(cls, root: Path) -> AnnotationColours:
        """The data set's colormap, which lies beside the scenes' annotations or in the root."""
        beside = root / ANNOTATIONS / COLORMAP
        return cls(beside if beside.exists() else root / COLORMAP)

    def decode(self, file: Path) -> np.ndarray:
        """The class ids of an annotation: uint8 (H, W).

        Raises:
            UserError: unreadable, no 8-bit RGB PNG, or a colour that the colormap lacks.
        """
        colours = read_colours(file)
        ids: np.ndarray = self._ids[colours.astype(np.int32) @ (1 << 16, 1 << 8, 1)]
        if (ids == _UNKNOWN).any():
            row, column = np.argwhere(ids == _UNKNOWN)[0]
            colour = " ".join(map(str, colours[row, column]))
            raise UserError(
                f"annotation '{file}' has the colour {colour} at row {row}, column {column}, "
                f"which '{self.file.name}' lacks: take RUGD's own files"
            )
        return ids

    def _parse(self, number: int, line: str) -> tuple[int, str, int]:
        """Id, name and 24-bit colour of one line."""
        try:
            id_, name, *colour = line.split()
            (red, green, blue), value = bytes(map(int, colour)), int(id_)
            if not 0 <= value < _UNKNOWN:
                raise ValueError
        except ValueError as error:
            raise UserError(
                f"colormap '{self.file}' line {number} is no 'id name red green blue': "
                "take RUGD's own file"
            ) from error
        return value, name, red << 16 | green << 8 | blue
