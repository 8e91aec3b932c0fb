"""Nominal training images in memory, drawn as augmented batches that depend on the step alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from anomaly_detector_ros.images import read_rgb
from anomaly_detector_ros.tensors import to_tensor

# Images are kept this much larger than the training size, so that a crop of 1 / MARGIN of each
# side is at native resolution and never enlarged.
MARGIN = 1.25


class TrainingImages:
    """Images as one uint8 array (N, H, W, 3), a little larger than the training size.

    Args:
        files: image files of any size; each is resized (its aspect ratio changes if it must).
        size: training height and width in pixels.

    Raises:
        UserError: a file cannot be read.
    """

    def __init__(self, files: Iterable[Path], size: tuple[int, int]) -> None:
        self.size = size
        height, width = (round(side * MARGIN) for side in size)
        images = []
        for file in files:
            images.append(cv2.resize(read_rgb(file), (width, height), interpolation=cv2.INTER_AREA))
        self.images = np.stack(images)

    def __len__(self) -> int:
        return len(self.images)

    def whole(self, index: int) -> np.ndarray:
        """One image without augmentation, uint8 (H, W, 3) at the training size."""
        return cv2.resize(self.images[index], self.size[::-1], interpolation=cv2.INTER_AREA)

    def augmented(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """A random crop of at least 1 / MARGIN of each side, mirrored half of the time.

        The horizon stays level and colours stay true: the scene remains one the robot could see.
        """
        image = self.images[index]
        height, width = image.shape[:2]
        scale = rng.uniform(1 / MARGIN, 1)
        crop_height, crop_width = round(height * scale), round(width * scale)
        top = rng.integers(height - crop_height + 1)
        left = rng.integers(width - crop_width + 1)
        crop = image[top : top + crop_height, left : left + crop_width]
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        return cv2.resize(crop, self.size[::-1], interpolation=cv2.INTER_AREA)

    def batch(self, batch_size: int, rng: np.random.Generator) -> Tensor:
        """Augmented images, float32 (B, 3, H, W) in [-1, 1]."""
        indices = rng.integers(len(self), size=batch_size)
        return to_tensor(np.stack([self.augmented(i, rng) for i in indices])).contiguous()
