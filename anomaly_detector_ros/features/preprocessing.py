"""Resizing and normalisation that feature networks expect of their input."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_detector_ros.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (B, 3, H, W) at size (h, w), float32, bilinear with antialiasing."""
    images = images.float()
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


def normalise(
    images: Tensor,
    size: tuple[int, int],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] -> (x01 - mean) / std at ``size``, x01 being in [0, 1]."""
    shift, scale = _shift_and_scale(mean, std, images.device)
    return torch.addcmul(shift, resize(images, size), scale)


@lru_cache
def _shift_and_scale(
    mean: tuple[float, float, float], std: tuple[float, float, float], device: torch.device
) -> Tensor:
    """(2, 3, 1, 1): with them (x / 2 + 1 / 2 - mean) / std is one multiply-add.

    Kept, as a GPU is waited for while it fetches them.
    """
    shift = [(0.5 - m) / s for m, s in zip(mean, std, strict=True)]
    with torch.inference_mode(False):
        return torch.tensor([shift, [0.5 / s for s in std]], device=device)[:, :, None, None]


def network_size(
    image_size: tuple[int, int], input_size: int | tuple[int, int], multiple: int
) -> tuple[int, int]:
    """The (height, width) at which a network sees images of ``image_size``.

    Args:
        image_size: (height, width).
        input_size: (height, width), taken as it is; or the shorter side alone, the longer one
            keeping the aspect ratio as nearly as multiples allow.
        multiple: what both sides are whole multiples of.
    """
    if not isinstance(input_size, int):
        return input_size
    shorter = min(image_size)

    def side(length: int) -> int:
        return max(1, round(length * input_size / (shorter * multiple))) * multiple

    return side(image_size[0]), side(image_size[1])


def check_input_size(input_size: int | tuple[int, int], multiple: int) -> None:
    """Raise UserError unless the sides are positive multiples of ``multiple`` pixels."""
    sides = (input_size,) if isinstance(input_size, int) else input_size
    if any(side < multiple or side % multiple for side in sides):
        text = "x".join(str(side) for side in sides)
        raise UserError(f"input_size {text}: take multiples of {multiple} pixels")
