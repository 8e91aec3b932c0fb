"""An autoencoder without normalisation layers, small enough for a robot's CPU.

It turns a picture into latents of an eighth of its height and width, and latents into a picture.
The layout is that of diffusers' `AutoencoderTiny` (Ollin Boer Bohan's TAESD): residual blocks of
plain convolutions, so that nothing but convolutions costs time. Two things differ. The widths grow
with depth, and the full resolution is never convolved: pixels are folded into channels first.
"""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

FACTOR = 8
"""Pixels a latent stands for, along each side."""


class Autoencoder(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers tells no types
    """Pictures (B, 3, H, W) in [-1, 1] to latents (B, C, H / 8, W / 8) and back.

    Latents have mean 0 and standard deviation 1 in every channel over the training images, which
    is what a diffusion model expects of its data.

    Args:
        latent_channels: C.
        channels: widths at a half, a quarter and an eighth of the resolution.
        encoder_blocks, decoder_blocks: residual blocks at each of these.
    """

    @register_to_config  # type: ignore
    def __init__(
        self,
        latent_channels: int = 8,
        channels: tuple[int, int, int] = (48, 96, 160),
        encoder_blocks: tuple[int, int, int] = (1, 1, 2),
        decoder_blocks: tuple[int, int, int] = (1, 2, 4),
    ) -> None:
        super().__init__()
        half, quarter, eighth = channels
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2),
            _conv(12, half),
            *_blocks(half, encoder_blocks[0]),
            _conv(half, quarter, stride=2),
            *_blocks(quarter, encoder_blocks[1]),
            _conv(quarter, eighth, stride=2),
            *_blocks(eighth, encoder_blocks[2]),
            _conv(eighth, latent_channels),
            nn.BatchNorm2d(latent_channels, affine=False),
        )
        self.decoder = nn.Sequential(
            _conv(latent_channels, eighth),
            *_blocks(eighth, decoder_blocks[2]),
            _conv(eighth, 4 * quarter),
            nn.PixelShuffle(2),
            *_blocks(quarter, decoder_blocks[1]),
            _conv(quarter, 4 * half),
            nn.PixelShuffle(2),
            *_blocks(half, decoder_blocks[0]),
            nn.ReLU(),
            _conv(half, 12),
            nn.PixelShuffle(2),
        )

    def encode(self, pictures: Tensor) -> Tensor:
        """Latents of pictures whose sides are multiples of 8."""
        latents: Tensor = self.encoder(pictures)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures of latents; values may leave [-1, 1] a little."""
        pictures: Tensor = self.decoder(latents)
        return pictures

    def forward(self, pictures: Tensor, noise: float = 0.0) -> Tensor:
        """Pictures as they come back.

        Args:
            noise: standard deviation of what is added to the latents on the way.
        """
        latents = self.encode(pictures)
        return self.decode(latents + noise * torch.randn_like(latents) if noise else latents)


class _Block(nn.Module):
    """x + conv(relu(conv(relu(x)))), which starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = _conv(channels, channels), _conv(channels, channels)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.second(torch.relu(self.first(torch.relu(x))))
        return x + changed


def _blocks(channels: int, count: int) -> list[nn.Module]:
    return [_Block(channels) for _ in range(count)]


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1)
