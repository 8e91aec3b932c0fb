"""Nominal images in another light, for what is trained on them or remembers them."""

from __future__ import annotations

import torch
from torch import Tensor


def vary_light(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image in a light of its own, (B, 3, H, W) float in [-1, 1], as the given ones.

    Of pixels in [0, 1], one after the other: a gamma of e^-0.7 to e^0.7; the contrast about the
    image's mean, times 0.7 to 1.5; the brightness, plus -0.12 to 0.12; the saturation, times 0.5 to
    1.4; a gain of each colour of e^-0.12 to e^0.12. All are drawn uniformly, the exponents where
    there is one. So a scene is dim or glaring, flat or harsh, warm or cold, but has no other
    content.

    Args:
        generator: on the CPU, whatever device the images are on: the same seed gives the same
            lights everywhere.
    """

    def draw(low: float, high: float, channels: int = 1) -> Tensor:
        shape = (len(images), channels, 1, 1)
        return torch.empty(shape).uniform_(low, high, generator=generator).to(images)

    lit = ((images + 1) / 2).clamp(1e-4, 1) ** torch.exp(draw(-0.7, 0.7))
    mean = lit.mean((1, 2, 3), keepdim=True)
    lit = (lit - mean) * draw(0.7, 1.5) + mean + draw(-0.12, 0.12)
    grey = lit.mean(1, keepdim=True)
    lit = ((lit - grey) * draw(0.5, 1.4) + grey) * torch.exp(draw(-0.12, 0.12, 3))
    return lit.clamp(0, 1) * 2 - 1
