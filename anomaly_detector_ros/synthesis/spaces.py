"""Spaces in which images are edited: their pixels, or the latents of an autoencoder.

Samplers and denoisers work in one space and know of no other; `Editor` goes there and back.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from anomaly_detector_ros.errors import UserError, as_user_error
from anomaly_detector_ros.runtime.inference import precision, ready
from anomaly_detector_ros.synthesis.autoencoder import FACTOR, Autoencoder


class Space(Protocol):
    """Where images are edited.

    Attributes:
        bounded: whether every point of it that stands for an image lies in [-1, 1].
    """

    bounded: bool

    def encode(self, images: Tensor) -> Tensor:
        """Points (B, C, h, w) of images (B, 3, H, W) in [-1, 1].

        Raises:
            UserError: the space holds no images of this size.
        """
        ...

    def decode(self, points: Tensor) -> Tensor:
        """Images (B, 3, H, W) of points (B, C, h, w); values may leave [-1, 1] a little."""
        ...


class PixelSpace:
    """Images as they are."""

    bounded = True

    def encode(self, images: Tensor) -> Tensor:
        """See `Space`."""
        return images

    def decode(self, points: Tensor) -> Tensor:
        """See `Space`."""
        return points


class LatentSpace:
    """Latents of an autoencoder, of mean 0 and standard deviation 1 over its training images.

    Args:
        autoencoder: on the device it runs on; tensors may come from elsewhere and go back there.
        dtype: precision of its convolutions (autocast).
    """

    bounded = False

    def __init__(self, autoencoder: Autoencoder, dtype: torch.dtype = torch.float32) -> None:
        self.autoencoder, self.dtype = autoencoder, dtype

    @classmethod
    def from_pretrained(
        cls,
        directory: Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> LatentSpace:
        """Reads ``vae/`` of a model directory, as `Autoencoder.save_pretrained` writes it.

        Raises:
            UserError: there is none, or it is no autoencoder of this kind.
        """
        with as_user_error(
            f"cannot load the autoencoder of '{directory}'",
            "give a model directory with vae/, or fetch the model again",
        ):
            autoencoder = Autoencoder.from_pretrained(
                directory, subfolder="vae", use_safetensors=True, local_files_only=True
            )
        return cls(ready(autoencoder, device, dtype), dtype)

    def encode(self, images: Tensor) -> Tensor:
        """See `Space`."""
        height, width = images.shape[-2:]
        if height % FACTOR or width % FACTOR:
            raise UserError(
                f"latents need images whose sides are multiples of {FACTOR}, not {height}x{width}: "
                "change the denoiser's size in the profile"
            )
        return self._run(self.autoencoder.encode, images)

    def decode(self, points: Tensor) -> Tensor:
        """See `Space`."""
        return self._run(self.autoencoder.decode, points)

    def _run(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        device = self.autoencoder.device
        given = x.to(device, torch.float32, memory_format=torch.channels_last)
        with precision(device, self.dtype):
            found = network(given)
        return found.to(x)


PIXELS = PixelSpace()


def space_of(denoiser: object) -> Space:
    """The space of a denoiser, its attribute ``space``; one without works on pixels."""
    space: Space = getattr(denoiser, "space", PIXELS)
    return space
