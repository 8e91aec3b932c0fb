"""Nominal training images: chosen from recordings, held in memory, drawn as augmented batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from operator import length_hint
from pathlib import Path

import cv2
import numpy as np
import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.imaging.images import read_rgb
from anomaly_detector_ros.runtime.tensors import to_tensor

ASPECT_TOLERANCE = 1.05
"""Up to this ratio of aspect ratios an image is squashed; beyond it the middle is cut out."""

_MEMORY_CHECK_EVERY = 256
_SHARPNESS_WIDTH = 320
_CHANGE_SIZE = (64, 36)  # width, height


class TrainingImages:
    """Images as uint8 (H, W, 3), so much larger than training that no crop must be enlarged.

    An image of another aspect ratio than the training size is cut to it about its middle.

    Args:
        pictures: image files, or uint8 RGB arrays (H, W, 3); of any sizes, mixed ones too.
        size: training height and width in pixels.
        min_crop: the smallest crop as a share of each side of the image, in (0, 1].
        on_image: called after each image with the number read.

    Attributes:
        enlarged: how many images are too small for their smallest crops, which are then blurred.

    Raises:
        UserError: a file cannot be read; an image is smaller than the training size; there is
            not enough memory.
    """

    def __init__(
        self,
        pictures: Iterable[Path | np.ndarray],
        size: tuple[int, int],
        min_crop: float = 0.8,
        on_image: Callable[[int], None] | None = None,
    ) -> None:
        self.size, self.min_crop, self.enlarged = size, min_crop, 0
        self.images: list[np.ndarray] = []
        stored = (round(size[0] / min_crop), round(size[1] / min_crop))
        expected = length_hint(pictures)
        for index, picture in enumerate(pictures):
            if index % _MEMORY_CHECK_EVERY == 0:
                _check_memory(max(expected - index, _MEMORY_CHECK_EVERY), stored)
            image = picture if isinstance(picture, np.ndarray) else read_rgb(picture)
            height, width = image.shape[:2]
            if height < size[0] or width < size[1]:
                name = f"frame {index}" if image is picture else f"'{picture}'"
                raise UserError(
                    f"{name} is {height}x{width}, smaller than the training size "
                    f"{size[0]}x{size[1]}: leave it out or choose a smaller --size"
                )
            image = crop_to_aspect(image, size)
            self.enlarged += image.shape[0] < stored[0] or image.shape[1] < stored[1]
            # Enlarged now, a crop would be blurred a second time when it is brought to its size.
            large = image.shape[0] > stored[0] and image.shape[1] > stored[1]
            self.images.append(_resize(image, stored) if large else image)
            if on_image:
                on_image(len(self))

    def __len__(self) -> int:
        return len(self.images)

    def whole(self, index: int) -> np.ndarray:
        """One image without augmentation, uint8 (H, W, 3) at the training size."""
        return _resize(self.images[index], self.size)

    def augmented(self, index: int, rng: np.random.Generator, uncropped: float = 0.0) -> np.ndarray:
        """A random crop of at least ``min_crop`` of each side, mirrored half of the time.

        The horizon stays level and colours stay true: the scene remains one the robot could see.

        Args:
            uncropped: the share of images that are left whole, and so as sharp as they are.
        """
        image = self.images[index]
        height, width = image.shape[:2]
        scale = rng.uniform(self.min_crop, 1)
        if uncropped and rng.random() < uncropped:
            scale = 1.0
        crop_height, crop_width = round(height * scale), round(width * scale)
        top = rng.integers(height - crop_height + 1)
        left = rng.integers(width - crop_width + 1)
        crop = image[top : top + crop_height, left : left + crop_width]
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        return _resize(crop, self.size)

    def batch(self, batch_size: int, rng: np.random.Generator, uncropped: float = 0.0) -> Tensor:
        """Augmented images, float32 (B, 3, H, W) in [-1, 1]; see `augmented`."""
        indices = rng.integers(len(self), size=batch_size)
        pictures = [self.augmented(i, rng, uncropped) for i in indices]
        return to_tensor(np.stack(pictures)).contiguous()

    def on(self, device: torch.device) -> TrainingImages | DeviceImages:
        """What makes batches for a device: where that is a GPU and all sizes are one, itself."""
        alike = len({image.shape for image in self.images}) == 1
        return DeviceImages(self, device) if alike and device.type == "cuda" else self

    def spread(self, count: int) -> list[int]:
        """At most ``count`` indices, evenly spread: neighbours are often frames of one drive."""
        spread = np.linspace(0, len(self) - 1, count).round().astype(int)
        return [int(index) for index in np.unique(spread)]


class DeviceImages:
    """Images of one size on a device, which cuts and resizes batches of them far faster than a CPU.

    Args:
        images: all of one size.
        device: with room for them, uint8.
    """

    def __init__(self, images: TrainingImages, device: torch.device) -> None:
        self.size, self.min_crop = images.size, images.min_crop
        self.frames = torch.from_numpy(np.stack(images.images)).permute(0, 3, 1, 2).to(device)

    def batch(self, batch_size: int, rng: np.random.Generator, uncropped: float = 0.0) -> Tensor:
        """As `TrainingImages.batch`, on the device."""
        indices = rng.integers(len(self.frames), size=batch_size)
        scale = rng.uniform(self.min_crop, 1, size=batch_size)
        scale[rng.random(batch_size) < uncropped] = 1
        warp = np.zeros((batch_size, 2, 3), np.float32)
        warp[:, 0, 0] = scale * np.where(rng.random(batch_size) < 0.5, -1, 1)
        warp[:, 1, 1] = scale
        warp[:, :, 2] = rng.uniform(-1, 1, size=(batch_size, 2)) * (1 - scale[:, None])
        device = self.frames.device
        grid = F.affine_grid(
            torch.from_numpy(warp).to(device), [batch_size, 3, *self.size], align_corners=False
        )
        pictures = self.frames[torch.from_numpy(indices).to(device)].float().div(127.5).sub(1)
        given = F.grid_sample(pictures, grid, "bicubic", "reflection", align_corners=False)
        return given.clamp(-1, 1)


def crop_to_aspect(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The largest middle part with the aspect ratio of ``size``; all of it where that is near.

    >>> crop_to_aspect(np.zeros((100, 300, 3), np.uint8), (50, 100)).shape
    (100, 200, 3)
    >>> crop_to_aspect(np.zeros((100, 204, 3), np.uint8), (50, 100)).shape
    (100, 204, 3)
    """
    height, width = image.shape[:2]
    ratio = width * size[0] / (height * size[1])
    if 1 / ASPECT_TOLERANCE <= ratio <= ASPECT_TOLERANCE:
        return image
    if ratio > 1:
        kept = round(width / ratio)
        left = (width - kept) // 2
        return image[:, left : left + kept]
    kept = round(height * ratio)
    top = (height - kept) // 2
    return image[top : top + kept]


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    shrinks = size[0] <= image.shape[0] and size[1] <= image.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(image, size[::-1], interpolation=interpolation)


def _check_memory(count: int, stored: tuple[int, int]) -> None:
    # Each process of a machine holds the images.
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    needed = count * stored[0] * stored[1] * 3 * processes
    available = psutil.virtual_memory().available
    if needed > available:
        raise UserError(
            f"{count} more images of {stored[0]}x{stored[1]} need {needed / 1e9:.1f} GB of memory, "
            f"{available / 1e9:.1f} GB are free: take fewer images, a smaller --size or a larger "
            "--min-crop"
        )


class FrameFilter:
    """Tells which frames of a recording, shown one after the other, to train on.

    Args:
        min_sharpness: see `sharpness`; a heavily blurred or featureless frame has 0 to 30, off-road
            scenes a few hundred and more.
        min_change: mean absolute difference of grey values, 0 to 255, from the last frame kept, at
            64x36; noise and compression make about 1, a robot on the move over 10.

    Attributes:
        blurred: frames refused so far as too blurred.
        repeated: frames refused so far as too like the last one kept.
    """

    def __init__(self, min_sharpness: float, min_change: float) -> None:
        self.min_sharpness, self.min_change = min_sharpness, min_change
        self.blurred = self.repeated = 0
        self._last: np.ndarray | None = None

    def keeps(self, picture: np.ndarray) -> bool:
        """Whether to train on a frame, uint8 RGB (H, W, 3)."""
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        small = cv2.resize(grey, _CHANGE_SIZE, interpolation=cv2.INTER_AREA)
        if self._last is not None and cv2.absdiff(small, self._last).mean() < self.min_change:
            self.repeated += 1
            return False
        if sharpness(grey) < self.min_sharpness:
            self.blurred += 1
            return False
        self._last = small
        return True


def sharpness(grey: np.ndarray) -> float:
    """Variance of the Laplacian of a picture brought to 320 columns, so that sizes compare.

    Args:
        grey: uint8 (H, W).
    """
    height = max(1, round(grey.shape[0] * _SHARPNESS_WIDTH / grey.shape[1]))
    small = cv2.resize(grey, (_SHARPNESS_WIDTH, height), interpolation=cv2.INTER_AREA)
    return float(cv2.Laplacian(small, cv2.CV_32F).var())
