"""U-Nets that were trained to fill in what is hidden."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn


class InpaintingUnet(nn.Module):
    """A U-Net whose input is [x_t, hidden, known]; see `inpainting_input`.

    The layout is that of Stable Diffusion's inpainting model. With everything hidden it models
    q(x_0), as a plain U-Net does.

    Args:
        unet: with 2 C + 1 channels in and C out.
    """

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        self.unet, self.config = unet, unet.config
        self._multiple = 2 ** (len(unet.config.block_out_channels) - 1)

    @staticmethod
    def is_one(unet: UNet2DModel) -> bool:
        """Whether a U-Net has this layout."""
        return bool(unet.config.in_channels == 2 * unet.config.out_channels + 1)

    def forward(self, x: Tensor, timesteps: Tensor) -> UNet2DOutput:
        """The prediction (B, C, h, w) at any height and width.

        Args:
            x: x_t (B, C, h, w) of which everything is hidden, or what `inpainting_input` gives.
            timesteps: (B,).
        """
        if x.shape[1] == self.config.out_channels:
            x = inpainting_input(x, torch.zeros_like(x), torch.ones_like(x[:, :1]))
        height, width = x.shape[-2:]
        missing = (0, -width % self._multiple, 0, -height % self._multiple)
        given = F.pad(x, missing, mode="replicate").contiguous(memory_format=torch.channels_last)
        predicted = self.unet(given, timesteps).sample[..., :height, :width]
        return UNet2DOutput(sample=predicted)


def inpainting_input(x: Tensor, known: Tensor, hidden: Tensor) -> Tensor:
    """The input (B, 2 C + 1, h, w) of an `InpaintingUnet`.

    Args:
        x: x_t (B, C, h, w).
        known: x_0 (B, C, h, w), shown where ``hidden`` is 0.
        hidden: (B, 1, h, w), 1 where the network must tell what there is.
    """
    return torch.cat([x, hidden, known * (1 - hidden)], 1)
