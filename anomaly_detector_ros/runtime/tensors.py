"""Pictures, uint8 with the channels last, to the tensors in [-1, 1] that networks see, and back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on ``device``; the program goes on while a CUDA device fetches it.

    From ordinary memory CUDA would copy through a pinned buffer of its own, and wait for it.
    """
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_tensor(pictures: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint8 (B, H, W, 3) to float32 (B, 3, H, W) in [-1, 1]."""
    tensor = to_device(torch.from_numpy(pictures), device)
    return tensor.permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_pictures(images: Tensor) -> np.ndarray:
    """float (B, 3, H, W) to uint8 (B, H, W, 3), rounded; what is beyond [-1, 1] is cut off."""
    scaled = images.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()
