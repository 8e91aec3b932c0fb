"""Resizing and normalisation that feature networks expect of their input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

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
    # One multiply-add: (x / 2 + 1 / 2 - mean) / std.
    scale = torch.tensor([0.5 / s for s in std], device=images.device)
    shift = torch.tensor(
        [(0.5 - m) / s for m, s in zip(mean, std, strict=True)], device=images.device
    )
    return torch.addcmul(shift.view(3, 1, 1), resize(images, size), scale.view(3, 1, 1))
