"""U-Nets that were trained to fill in what is hidden, asked for all of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn


class InpaintingUnet(nn.Module):
    """A U-Net whose input is [x_t, hidden, known], with everything hidden.

    The layout is that of Stable Diffusion's inpainting model: C noisy channels, one that is 1
    where the content is hidden, and C of what is known elsewhere. With nothing known it models
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
        """The prediction (B, C, h, w) for x_t (B, C, h, w) of any height and width."""
        height, width = x.shape[-2:]
        hidden, known = torch.ones_like(x[:, :1]), torch.zeros_like(x)
        missing = (0, -width % self._multiple, 0, -height % self._multiple)
        given = F.pad(torch.cat([x, hidden, known], 1), missing, mode="replicate")
        given = given.contiguous(memory_format=torch.channels_last)
        predicted = self.unet(given, timesteps).sample[..., :height, :width]
        return UNet2DOutput(sample=predicted)
