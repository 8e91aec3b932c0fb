"""The U-Net of the package denoising-diffusion-pytorch (`Unet`, versions 1.8 to 2.x).

The paper's diffusion models were trained with it. Submodules have that package's names, so that
its state dicts load unchanged. Dropout is left out: it does nothing outside training.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from anomaly_detector_ros.errors import UserError

# What a state dict does not tell: the package's defaults.
GROUPS = 8


@dataclass(frozen=True)
class LucidrainsConfig:
    """The shape of a network, under the package's names of its arguments.

    Attributes:
        dim: channels that `dim_mults` multiply, and size of the sinusoidal time embedding.
        init_dim: channels after the first convolution.
        dim_mults: channels of each level in units of `dim`; each level halves the resolution.
        full_attn: full attention per level; linear attention where False.
        attn_heads: attention heads per level.
        attn_dim_head: channels of a head per level.
        num_mem_kv: learned keys and values beside those of the image; 0 before version 1.9.
        block_norm: ``group`` (8 groups, versions 1.x) or ``rms`` (2.x).
        channels: of the images and of the output.
    """

    dim: int
    init_dim: int
    dim_mults: tuple[int, ...]
    full_attn: tuple[bool, ...]
    attn_heads: tuple[int, ...]
    attn_dim_head: tuple[int, ...]
    num_mem_kv: int = 4
    block_norm: str = "group"
    channels: int = 3


class RMSNorm(nn.Module):
    """Divides each pixel's features by their root mean square; Zhang & Sennrich 2019."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        scaled: Tensor = F.normalize(x, dim=1) * self.g * self.g.numel() ** 0.5
        return scaled


class TimeEmbedding(nn.Module):
    """Timesteps (B,) to sines and cosines (B, channels); Vaswani et al. 2017."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, timesteps: Tensor) -> Tensor:
        """Wavelengths from 2 pi to 10,000 times as much."""
        embedded: Tensor = get_timestep_embedding(timesteps, self.channels, downscale_freq_shift=1)
        return embedded


class Block(nn.Module):
    """Convolution, norm, scale and shift by the time, SiLU."""

    def __init__(self, inputs: int, outputs: int, norm: str) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm = nn.GroupNorm(GROUPS, outputs) if norm == "group" else RMSNorm(outputs)

    def forward(self, x: Tensor, scale_shift: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        x = self.norm(self.proj(x))
        if scale_shift is not None:
            scale, shift = scale_shift
            x = x * (scale + 1) + shift
        return F.silu(x)


class ResnetBlock(nn.Module):
    """Two blocks, the first steered by the time, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, time_channels: int, norm: str) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_channels, outputs * 2))
        self.block1 = Block(inputs, outputs, norm)
        self.block2 = Block(outputs, outputs, norm)
        self.res_conv = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, inputs, H, W), time (B, time_channels) to (B, outputs, H, W)."""
        scale, shift = self.mlp(time)[:, :, None, None].chunk(2, dim=1)
        changed: Tensor = self.block2(self.block1(x, (scale, shift))) + self.res_conv(x)
        return changed


class LinearAttention(nn.Module):
    """Attention whose cost grows with the number of pixels N only; Shen et al. 2021."""

    def __init__(self, channels: int, heads: int, dim_head: int, num_mem_kv: int) -> None:
        super().__init__()
        self.heads, self.dim_head = heads, dim_head
        hidden = heads * dim_head
        self.norm = RMSNorm(channels)
        if num_mem_kv:
            self.mem_kv = nn.Parameter(torch.randn(2, heads, dim_head, num_mem_kv))
        self.to_qkv = nn.Conv2d(channels, hidden * 3, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(hidden, channels, 1), RMSNorm(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape, to be added to ``x``."""
        q, k, v = _heads(self.to_qkv(self.norm(x)), self.heads, self.dim_head)
        if hasattr(self, "mem_kv"):
            memory = self.mem_kv[:, None].expand(-1, x.shape[0], -1, -1, -1)
            k, v = torch.cat([memory[0], k], -1), torch.cat([memory[1], v], -1)
        q = q.softmax(-2) * self.dim_head**-0.5
        context = k.softmax(-1) @ v.transpose(-1, -2)
        out = context.transpose(-1, -2) @ q
        attended: Tensor = self.to_out(out.flatten(1, 2).unflatten(-1, x.shape[-2:]))
        return attended


class Attention(nn.Module):
    """Scaled dot-product attention of every pixel to every pixel."""

    def __init__(self, channels: int, heads: int, dim_head: int, num_mem_kv: int) -> None:
        super().__init__()
        self.heads, self.dim_head = heads, dim_head
        hidden = heads * dim_head
        self.norm = RMSNorm(channels)
        if num_mem_kv:
            self.mem_kv = nn.Parameter(torch.randn(2, heads, num_mem_kv, dim_head))
        self.to_qkv = nn.Conv2d(channels, hidden * 3, 1, bias=False)
        self.to_out = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape, to be added to ``x``."""
        q, k, v = _heads(self.to_qkv(self.norm(x)), self.heads, self.dim_head).transpose(-1, -2)
        if hasattr(self, "mem_kv"):
            memory = self.mem_kv[:, None].expand(-1, x.shape[0], -1, -1, -1)
            k, v = torch.cat([memory[0], k], -2), torch.cat([memory[1], v], -2)
        out = F.scaled_dot_product_attention(q, k.to(q), v.to(q))
        out = out.transpose(-1, -2).flatten(1, 2).unflatten(-1, x.shape[-2:])
        attended: Tensor = self.to_out(out)
        return attended


def _heads(qkv: Tensor, heads: int, dim_head: int) -> Tensor:
    """(B, 3 * heads * dim_head, H, W) to (3, B, heads, dim_head, H * W)."""
    split: Tensor = qkv.unflatten(1, (3, heads, dim_head))
    return split.flatten(4).transpose(0, 1)


class LucidrainsUnet(nn.Module):
    """The network itself; what it predicts is the schedule's business.

    Example:
        >>> levels = {"full_attn": (False, True), "attn_heads": (4, 4), "attn_dim_head": (32, 32)}
        >>> unet = LucidrainsUnet(LucidrainsConfig(8, 8, (1, 2), **levels))
        >>> tuple(unet(torch.zeros(2, 3, 4, 6), torch.tensor([0, 999])).sample.shape)
        (2, 3, 4, 6)
    """

    def __init__(self, config: LucidrainsConfig) -> None:
        super().__init__()
        self.config = config
        dims = [config.init_dim, *(config.dim * mult for mult in config.dim_mults)]
        levels = list(pairwise(dims))
        last = len(levels) - 1
        time_channels = config.dim * 4

        def resnet(inputs: int, outputs: int) -> ResnetBlock:
            return ResnetBlock(inputs, outputs, time_channels, config.block_norm)

        def attention(channels: int, level: int, full: bool) -> nn.Module:
            kind = Attention if full else LinearAttention
            heads, dim_head = config.attn_heads[level], config.attn_dim_head[level]
            return kind(channels, heads, dim_head, config.num_mem_kv)

        self.init_conv = nn.Conv2d(config.channels, config.init_dim, 7, padding=3)
        self.time_mlp = nn.Sequential(
            TimeEmbedding(config.dim),
            nn.Linear(config.dim, time_channels),
            nn.GELU(),
            nn.Linear(time_channels, time_channels),
        )
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for level, (wide, deep) in enumerate(levels):
            full = config.full_attn[level]
            down = _downsample(wide, deep) if level < last else nn.Conv2d(wide, deep, 3, padding=1)
            up = _upsample(deep, wide) if level > 0 else nn.Conv2d(deep, wide, 3, padding=1)
            self.downs.append(
                nn.ModuleList(
                    [resnet(wide, wide), resnet(wide, wide), attention(wide, level, full), down]
                )
            )
            joined = resnet(deep + wide, deep), resnet(deep + wide, deep)
            self.ups.insert(0, nn.ModuleList([*joined, attention(deep, level, full), up]))
        self.mid_block1 = resnet(dims[-1], dims[-1])
        self.mid_attn = attention(dims[-1], last, full=True)
        self.mid_block2 = resnet(dims[-1], dims[-1])
        self.final_res_block = resnet(config.init_dim * 2, config.init_dim)
        self.final_conv = nn.Conv2d(config.init_dim, config.channels, 1)

    @property
    def downsample_factor(self) -> int:
        """Height and width of the images must be multiples of it."""
        return 1 << (len(self.downs) - 1)

    def forward(self, x: Tensor, timesteps: Tensor) -> UNet2DOutput:
        """The prediction for noisy images, as diffusers' `UNet2DModel` returns it.

        Args:
            x: (B, C, H, W), H and W multiples of `downsample_factor`.
            timesteps: (B,).

        Raises:
            UserError: images of another size.
        """
        if any(side % self.downsample_factor for side in x.shape[-2:]):
            raise UserError(
                f"the denoiser cannot take {x.shape[-2]}x{x.shape[-1]} images: "
                f"give a size of multiples of {self.downsample_factor}"
            )
        time = self.time_mlp(timesteps)
        x = first = self.init_conv(x)
        skips = []
        for level in self.downs:
            block1, block2, attention, resample = cast(nn.ModuleList, level)
            x = block1(x, time)
            skips.append(x)
            x = block2(x, time)
            x = attention(x) + x
            skips.append(x)
            x = resample(x)
        x = self.mid_block1(x, time)
        x = self.mid_attn(x) + x
        x = self.mid_block2(x, time)
        for level in self.ups:
            block1, block2, attention, resample = cast(nn.ModuleList, level)
            x = block1(torch.cat([x, skips.pop()], 1), time)
            x = block2(torch.cat([x, skips.pop()], 1), time)
            x = resample(attention(x) + x)
        x = self.final_res_block(torch.cat([x, first], 1), time)
        return UNet2DOutput(sample=self.final_conv(x))


def _downsample(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(inputs * 4, outputs, 1))


def _upsample(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(inputs, outputs, 3, padding=1))
