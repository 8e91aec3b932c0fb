"""Feature extractors: their interface, and what those that run a network have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.features.preprocessing import check_input_size, network_size, normalise
from anomaly_detector_ros.runtime.inference import precision, ready
from anomaly_detector_ros.runtime.tensors import to_device

Colour = tuple[float, float, float]


class FeatureExtractor(Protocol):
    """Turns images into feature maps whose cells stand for ``stride`` x ``stride`` pixels."""

    channels: int
    stride: int

    def extract(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float in [-1, 1], any size -> (B, channels, h, w) float32."""
        ...


class NetworkFeatures(ABC):
    """Feature maps of one network; a subclass builds it and runs it on normalised pixels.

    Args:
        network: the network, put into evaluation mode here.
        channels: of its feature maps.
        stride: pixels a side that one cell of the feature map stands for.
        input_size: (height, width) in pixels at which the network sees every image, or the
            shorter side alone, the aspect ratio kept; multiples of ``stride``.
        mean: that the network expects the pixels, in [0, 1], to be freed of.
        std: by which it expects them to be divided.
        device: where the network runs.
        dtype: of the matrix products: ``torch.float32``, ``torch.bfloat16`` or ``torch.float16``
            (norms, the residual stream and the result stay float32).
        channel_norm: bring each cell's features to mean 0 and variance 1, as FeatUp's ChannelNorm
            does (a layer norm whose weights its training left at 1 and 0).
        any_size: let ``input_size`` be no multiple of the stride: what is left over at the bottom
            and on the right is not seen.

    Raises:
        UserError: a setting out of range.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        channels: int,
        stride: int,
        input_size: int | tuple[int, int],
        mean: Colour,
        std: Colour,
        device: torch.device | str,
        dtype: torch.dtype,
        channel_norm: bool = False,
        any_size: bool = False,
    ) -> None:
        check_input_size(input_size, 1 if any_size else stride)
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise UserError(f"dtype {dtype}: take float32, bfloat16 or float16")
        self.channels, self.stride, self.input_size = channels, stride, input_size
        self.mean, self.std = mean, std
        self.device = torch.device(device)
        self.dtype, self.channel_norm = dtype, channel_norm
        # What a network of some library has is known to that library alone.
        self._network: Any = ready(network, self.device, dtype)

    @torch.inference_mode()
    def extract(self, images: Tensor) -> Tensor:
        """Features of images (B, 3, H, W) in [-1, 1], of any size: (B, channels, h, w) float32.

        h, w = the size at which the network sees them / ``stride``, rounded down.
        """
        size = network_size((images.shape[-2], images.shape[-1]), self.input_size, self.stride)
        pixels = normalise(to_device(images, self.device), size, self.mean, self.std)
        height, width = (side // self.stride * self.stride for side in size)
        with precision(self.device, self.dtype):
            maps = self._maps(pixels[..., :height, :width]).float()
        if self.channel_norm:
            cells = maps.permute(0, 2, 3, 1)
            maps = F.layer_norm(cells, cells.shape[-1:]).permute(0, 3, 1, 2)
        return maps.contiguous()

    @abstractmethod
    def _maps(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, H, W) -> (B, channels, H / stride, W / stride)."""


def resample_position_embedding(
    embedding: Tensor, grid: tuple[int, int], *, as_in_featup: bool = False
) -> Tensor:
    """(1, 1 + N, C) of a square grid -> (1, 1 + h*w, C) for grid (h, w); class token first.

    Bicubic without antialiasing, as the official DINOv2 ViT-S/14 (without registers) and its
    published ONNX graph do it. Where n cells become h, FeatUp's networks step by n / (h + 0.1)
    cells instead of n / h, which moves the last positions by up to a tenth of a cell.
    """
    token, patches = embedding[:, :1], embedding[:, 1:]
    side = round(patches.shape[1] ** 0.5)
    if side * side != patches.shape[1]:
        raise UserError(f"position embedding of {patches.shape[1]} patches: not a square grid")
    if (side, side) == grid:
        return embedding
    planes = patches.transpose(1, 2).unflatten(2, (side, side))
    if as_in_featup:
        factors = [(cells + 0.1) / side for cells in grid]
        planes = F.interpolate(
            planes, scale_factor=factors, mode="bicubic", recompute_scale_factor=False
        )
    else:
        planes = F.interpolate(planes, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([token, planes.flatten(2).transpose(1, 2)], dim=1)


class OneByOneFeatures:
    """A feature extractor that sees one image at a time, whatever the batch."""

    def __init__(self, features: FeatureExtractor) -> None:
        self._features = features
        self.channels, self.stride = features.channels, features.stride

    def extract(self, images: Tensor) -> Tensor:
        """See `FeatureExtractor`."""
        return torch.cat([self._features.extract(image) for image in images.split(1)])
