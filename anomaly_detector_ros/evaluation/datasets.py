"""Labelled data sets as images with per-pixel truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.images import find_images, read_rgb

YCOR_VOID, YCOR_OBSTACLE = 0, 8


@dataclass(frozen=True)
class LabelledImage:
    """One image and its truth.

    Attributes:
        name: of the image file, without suffix.
        image: uint8 RGB (H, W, 3).
        anomaly: bool (H, W), what is out of distribution.
        valid: bool (H, W), False where the truth is void.
    """

    name: str
    image: np.ndarray
    anomaly: np.ndarray
    valid: np.ndarray


def count_images(root: Path) -> int:
    """How many images a data set of either layout holds."""
    return len(find_images(root / "images"))


def load_ycor(root: Path) -> Iterator[LabelledImage]:
    """Yamaha-CMU Off-Road: ``images/*.jpg`` and ``labels/*.png`` with ids; obstacles are anomalies.

    Raises:
        UserError: a folder or a label is missing, or sizes differ.
    """
    for file in find_images(root / "images"):
        image, label = _pair(file, root / "labels" / f"{file.stem}.png")
        yield LabelledImage(file.stem, image, label == YCOR_OBSTACLE, label != YCOR_VOID)


def load_folder(root: Path) -> Iterator[LabelledImage]:
    """``images/*`` and ``masks/<stem>.png``: 0 nominal, 255 void, anything else anomalous.

    Raises:
        UserError: a folder or a mask is missing, or sizes differ.
    """
    for file in find_images(root / "images"):
        image, mask = _pair(file, root / "masks" / f"{file.stem}.png")
        yield LabelledImage(file.stem, image, (mask > 0) & (mask < 255), mask < 255)


DATASETS: dict[str, Callable[[Path], Iterator[LabelledImage]]] = {
    "ycor": load_ycor,
    "folder": load_folder,
}


def _pair(image_file: Path, label_file: Path) -> tuple[np.ndarray, np.ndarray]:
    image = read_rgb(image_file)
    label = cv2.imread(str(label_file), cv2.IMREAD_UNCHANGED)
    if label is None:
        raise UserError(f"no readable label '{label_file}' for image '{image_file.name}': add it")
    if label.ndim != 2 or label.shape != image.shape[:2]:
        raise UserError(
            f"label '{label_file}' is {label.shape}, its image {image.shape[:2]}: "
            "labels are single-channel PNG files of the image's size"
        )
    return image, label
