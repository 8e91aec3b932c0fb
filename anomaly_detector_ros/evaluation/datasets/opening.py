"""Labelled data sets by name: RUGD, RELLIS-3D, YCOR and a folder of images and masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.evaluation.datasets.folder import load_folder
from anomaly_detector_ros.evaluation.datasets.labelled import Dataset, LabelledImage, Progress
from anomaly_detector_ros.evaluation.datasets.rellis import load_rellis
from anomaly_detector_ros.evaluation.datasets.rugd import load_rugd
from anomaly_detector_ros.evaluation.datasets.ycor import load_ycor

__all__ = [
    "DATASETS",
    "Dataset",
    "LabelledImage",
    "load_folder",
    "load_rellis",
    "load_rugd",
    "load_ycor",
    "nominal_images",
    "open_dataset",
    "open_nominal",
]

DATASETS: dict[str, Callable[..., Dataset]] = {
    "rugd": load_rugd,
    "rellis": load_rellis,
    "ycor": load_ycor,
    "folder": load_folder,
}
"""Every layout by name: a function of the root, the split and a progress callback."""


def open_dataset(
    name: str, root: Path, split: str | None = None, progress: Progress | None = None
) -> Dataset:
    """A labelled data set.

    Args:
        name: rugd, rellis, ycor or folder.
        root: its directory, laid out as `load_rugd`, `load_rellis`, `load_ycor` or `load_folder`
            say.
        split: a part of it, which depends on the data set; None for all that the root holds.
        progress: called while labels are read to find the images of a split.

    Raises:
        UserError: unknown name or split, missing or malformed files, no image.
    """
    if name not in DATASETS:
        raise UserError(f"unknown data set '{name}': give one of {', '.join(DATASETS)}")
    return DATASETS[name](root, split, progress)


def open_nominal(
    name: str, root: Path, split: str | None = None, progress: Progress | None = None
) -> Dataset:
    """The images that do not count as out of distribution: what to train on.

    YCOR and a folder have no rule for whole images: there a single anomalous pixel is too much.

    Args:
        name: as for `open_dataset`, like the root.
        root: directory of the data set.
        split: a part of it; None for train where scenes tell it apart (RUGD), else for all that
            the root holds.
        progress: called while labels are read.

    Raises:
        UserError: as `open_dataset`; no image is nominal; a label that cannot be read.
    """
    if split is None and name == "rugd":
        split = "train"
    return open_dataset(name, root, split, progress).select(ood=False, progress=progress)


def nominal_images(
    name: str, root: Path, split: str | None = None, progress: Progress | None = None
) -> list[Path]:
    """The image files of `open_nominal`, which takes the same arguments."""
    return open_nominal(name, root, split, progress).image_files()
