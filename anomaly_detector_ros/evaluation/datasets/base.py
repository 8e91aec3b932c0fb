"""Labelled images and sets of them: what every layout on disk has in common.

A layout's own file registers one dataclass with `DATASETS`; nothing else names it.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image as PilImage

from anomaly_detector_ros.errors import UserError, as_user_error
from anomaly_detector_ros.evaluation.cache import Cache
from anomaly_detector_ros.evaluation.datasets.index import LabelIndex
from anomaly_detector_ros.imaging.images import read_rgb
from anomaly_detector_ros.runtime.parts import PartRegistry
from anomaly_detector_ros.runtime.progress import Progress
from anomaly_detector_ros.sources.folders import find_images

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Labels are read more strictly than pictures: a converted bit depth or palette would change ids.
# Bytes of the header chunk, which comes first in every PNG file.
_DEPTH, _COLOUR_TYPE = 24, 25
_COLOUR_TYPES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey-alpha", 6: "RGBA"}
_GREY, _RGB, _PALETTE = 0, 2, 3
# What labelling tools add to an image's name.
_ADDED = ("", "_mask", "_masks", "_label", "_labels", "_gt", "_segmentation")


@dataclass(frozen=True)
class Classes:
    """The classes of a data set.

    Attributes:
        names: of every class by its id, 0 to 255; an id without a name is an error in a label.
        void: ids left out of every metric.
        anomalous: ids that are out of distribution.
    """

    names: Mapping[int, str]
    void: frozenset[int]
    anomalous: frozenset[int]

    @classmethod
    def named(cls, names: Mapping[int, str], anomalous: Iterable[str]) -> Classes:
        """Classes of which one is called void and those of the given names are anomalous.

        Raises:
            KeyError: a name that no class has.
        """
        ids = {name: id_ for id_, name in names.items()}
        return cls(names, frozenset({ids["void"]}), frozenset(ids[name] for name in anomalous))


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


def read_ids(file: Path) -> np.ndarray:
    """A grey or palette PNG or BMP whose values or indices are class ids: uint8 (H, W).

    Raises:
        UserError: unreadable, neither, truncated, or of another kind (16 bit, RGB, RGBA, ...).
    """
    return _read_label(file, (_GREY, _PALETTE))


def read_colours(file: Path) -> np.ndarray:
    """An 8-bit RGB PNG whose colours stand for classes: uint8 (H, W, 3).

    Raises:
        UserError: unreadable, no PNG, truncated, or of another kind (16 bit, palette, RGBA, ...).
    """
    return _read_label(file, (_RGB,))


def _read_label(file: Path, colour_types: tuple[int, ...]) -> np.ndarray:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read label '{file}' ({error.strerror}): mend the file") from error
    if data.startswith(b"BM") and _GREY in colour_types:
        return _decode_label(file, data, ("1", "L", "P"))
    if not data.startswith(_PNG_SIGNATURE) or len(data) <= _COLOUR_TYPE:
        raise UserError(f"label '{file}' is no PNG file: save it as PNG")
    depth, colour_type = data[_DEPTH], data[_COLOUR_TYPE]
    if depth > 8 or colour_type not in colour_types:
        kind = _COLOUR_TYPES.get(colour_type, "unknown")
        raise UserError(
            f"label '{file}' is a {kind} PNG of {depth} bits: "
            f"save it as {_COLOUR_TYPES[colour_types[0]]} of 8 bits"
        )
    labels = _decode_label(file, data, ("1", "L", "P", "RGB"))
    if colour_type == _GREY and depth in (2, 4):  # which Pillow stretches to 8 bits
        labels //= 255 // (2**depth - 1)
    return labels


def _decode_label(file: Path, data: bytes, modes: tuple[str, ...]) -> np.ndarray:
    with (
        as_user_error(f"label '{file}' is truncated or corrupt", "copy it anew"),
        PilImage.open(io.BytesIO(data), formats=("PNG", "BMP")) as picture,
    ):
        picture.load()
        mode, labels = picture.mode, np.array(picture)
    if mode not in modes:
        raise UserError(f"label '{file}' is of colours ({mode}): save it as grey PNG of 8 bits")
    return labels.astype(np.uint8)


class Dataset:
    """Labelled images in a fixed order, read when asked for: one is in memory at a time.

    Args:
        name: of the layout, as `open_dataset` takes it.
        root: directory of the data set.
        classes: what the label ids mean.
        pairs: image file and label file of each image.
        read: reads a label file: uint8 (H, W), class ids.
        counts_as_ood: whether an image counts as out of distribution as a whole, from the number of
            its anomalous pixels and of all. By default one such pixel is enough.
        ood: whether all images count as out of distribution, or none, where that is known.
        index: what is known of the label files, see `Layout.index`.

    Attributes:
        pairs: as given.

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
        counts_as_ood: Callable[[int, int], bool] = lambda anomalous, pixels: anomalous > 0,
        ood: bool | None = None,
        index: LabelIndex | None = None,
    ) -> None:
        if not pairs:
            raise UserError(f"no such images in '{root}': check the folder and the split")
        for image, label in pairs:
            if not label.is_file():
                raise UserError(f"no readable label '{label}' for image '{image}': add it")
        self.name, self.root, self.classes = name, root, classes
        self.pairs = list(pairs)
        self._read, self._counts_as_ood, self._ood = read, counts_as_ood, ood
        self._index = index or LabelIndex()

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[LabelledImage]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> LabelledImage:
        """One image and its truth.

        Raises:
            UserError: a file that cannot be read, an unknown label, or sizes that differ.
        """
        file, label_file = self.pairs[index]
        image, labels = read_rgb(file), self._labels(label_file)
        if labels.shape != image.shape[:2]:
            raise UserError(
                f"label '{label_file}' is {labels.shape}, its image {image.shape[:2]}: "
                "labels are as large as their images"
            )
        valid = ~np.isin(labels, list(self.classes.void))
        anomaly = np.isin(labels, list(self.classes.anomalous))
        return LabelledImage(file.stem, image, labels, anomaly, valid, file)

    def _labels(self, file: Path) -> np.ndarray:
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
        return [image for image, _ in self.pairs]

    def class_frequencies(self, progress: Progress | None = None) -> dict[int, float]:
        """The share of these images that hold each class, [0, 1] by id, as the paper weights them.

        Reads every label that the index does not know.

        Raises:
            UserError: a label that cannot be read, or an unknown one.
        """
        counts = dict.fromkeys(sorted(self.classes.names), 0)
        for held in self._class_pixels(progress):
            for id_ in held:
                counts[id_] += 1
        return {id_: count / len(self) for id_, count in counts.items()}

    def select(self, *, ood: bool, progress: Progress | None = None) -> Dataset:
        """The images that count as out of distribution, or those that do not.

        Reads every label that the index does not know, unless the set is such a selection already.

        Raises:
            UserError: there is none, a label that cannot be read, or an unknown one.
        """
        if self._ood is ood:
            return self
        flags = [
            self._counts_as_ood(
                sum(held.get(id_, 0) for id_ in self.classes.anomalous), sum(held.values())
            )
            for held in self._class_pixels(progress)
        ]
        pairs = [pair for pair, flag in zip(self.pairs, flags, strict=True) if flag == ood]
        if not pairs:
            raise UserError(
                f"none of the {len(self)} images in '{self.root}' "
                f"{'counts as out of distribution' if ood else 'is nominal'}: choose another split"
            )
        return self.of(pairs, ood)

    def of(self, pairs: Sequence[tuple[Path, Path]], ood: bool | None = None) -> Dataset:
        """The same data set of other image and label files; UserError where there are none."""
        return Dataset(
            self.name,
            self.root,
            self.classes,
            pairs,
            self._read,
            self._counts_as_ood,
            self._ood if ood is None else ood,
            self._index,
        )

    def _class_pixels(self, progress: Progress | None) -> list[Mapping[int, int]]:
        return self._index.class_pixels([label for _, label in self.pairs], self._labels, progress)


@dataclass(frozen=True)
class Layout(ABC):
    """How a data set lies on disk.

    Args:
        root: its directory.
        split: one of `splits`, a part of it; None for all that the root holds.
        cache: where it is kept what the labels hold, so that each is read once.

    Attributes:
        name: of the data set, in tables.
        splits: the parts that it can be asked for.
        evaluated_split: the part to evaluate on, and ...
        nominal_split: ... to train on, where None is given.

    Raises:
        UserError: an unknown split.
    """

    root: Path
    split: str | None = None
    cache: Cache | None = None

    name: ClassVar[str]
    splits: ClassVar[tuple[str, ...]] = ()
    evaluated_split: ClassVar[str | None] = None
    nominal_split: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        if self.split is not None and self.split not in self.splits:
            remedy = f"give one of {', '.join(self.splits)}" if self.splits else "leave it out"
            raise UserError(f"{self.name} has no split '{self.split}': {remedy}")

    @abstractmethod
    def open(self, progress: Progress | None = None) -> Dataset:
        """The images and their labels.

        Args:
            progress: called while labels are read to find the images of a split.

        Raises:
            UserError: missing or malformed files, no image.
        """

    def index(self, meaning: Any = None) -> LabelIndex:
        """For the data set of this root.

        Args:
            meaning: what gives the labels their meaning beside this class, if anything.
        """
        return LabelIndex(self.cache, [self.name, str(self.root.absolute()), meaning])


DATASETS = PartRegistry[Layout]("data set", __package__)


def open_dataset(
    name: str,
    root: Path,
    split: str | None = None,
    progress: Progress | None = None,
    cache: Cache | None = None,
) -> Dataset:
    """A labelled data set.

    Args:
        name: as `DATASETS` knows it.
        root, split, progress, cache: see `Layout`.

    Raises:
        UserError: unknown name or split, missing or malformed files, no image.
    """
    return DATASETS.get(name)(root, split, cache).open(progress)


def open_nominal(
    name: str,
    root: Path,
    split: str | None = None,
    progress: Progress | None = None,
    cache: Cache | None = None,
) -> Dataset:
    """The images that do not count as out of distribution: what to train on.

    A data set without a rule for whole images leaves out those with any anomalous pixel.

    Args:
        name, root, progress, cache: as for `open_dataset`.
        split: a part of it; by default the layout's own for training, else all.

    Raises:
        UserError: as `open_dataset`; no image is nominal; a label that cannot be read.
    """
    split = split or DATASETS.get(name).nominal_split
    dataset = open_dataset(name, root, split, progress, cache)
    return dataset.select(ood=False, progress=progress)


def pairs_below(images: Path, labels: Path) -> list[tuple[Path, Path]]:
    """Every picture below a folder with the label of the same path below another.

    That is a PNG of the same stem; where there is none, a BMP, or a stem with `_mask` and the like.

    Raises:
        UserError: the first folder does not exist or holds no picture.
    """
    return [(file, _label_of(labels / file.relative_to(images))) for file in find_images(images)]


def _label_of(path: Path) -> Path:
    """The label file that there is for this path, whatever its suffix; else what it should be."""
    names = [f"{path.stem}{added}{suffix}" for added in _ADDED for suffix in (".png", ".bmp")]
    candidates = [path.with_name(name) for name in names]
    return next((each for each in candidates if each.is_file()), candidates[0])
