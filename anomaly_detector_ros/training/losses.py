"""What an autoencoder's pictures should keep: pixels, edges, features, texture, and sharpness.

Pictures are (B, 3, H, W) in [-1, 1] throughout; a loss is one number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly_detector_ros.features.dinov2 import PATCH
from anomaly_detector_ros.features.dinov2_weights import load_dinov2_weights
from anomaly_detector_ros.features.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from anomaly_detector_ros.weights.registry import Registry

BLOCKS = (3, 6, 9)
"""Of DINOv2, whose features pictures should keep."""

GRADIENT_WEIGHT, TEXTURE_WEIGHT, ADVERSARY_WEIGHT = 0.5, 0.1, 0.35

_BANDS, _CELL = 3, 8
_FAINT = 0.01


class PatchFeatures(nn.Module):
    """Patch features of DINOv2 ViT-S/14 after each of `BLOCKS`, which gradients can pass.

    Args:
        weights: see `load_dinov2_weights`; None for random ones.
    """

    def __init__(self, weights: Path | None) -> None:
        super().__init__()
        self.network: Any = timm.create_model(
            "vit_small_patch14_dinov2", num_classes=0, depth=max(BLOCKS), dynamic_img_size=True
        )
        if weights is not None:
            self.network.load_state_dict(load_dinov2_weights(weights, max(BLOCKS)))
        self.eval().requires_grad_(False)
        self.mean = nn.Buffer(torch.tensor(IMAGENET_MEAN).reshape(1, 3, 1, 1))
        self.std = nn.Buffer(torch.tensor(IMAGENET_STD).reshape(1, 3, 1, 1))

    @classmethod
    def fetched(cls) -> PatchFeatures:
        """With the weights that the shipped profiles compare by.

        Raises:
            UserError: they are not here and cannot be fetched.
        """
        return cls(Registry.default().fetch("dinov2_vits14_focus") / "vit_s_focus.onnx")

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Maps (B, 384, h, w), one for each block; each patch about 14x14 pixels."""
        height, width = (side // PATCH * PATCH for side in pictures.shape[-2:])
        pixels = F.interpolate(pictures, (height, width), mode="bilinear", antialias=True)
        maps: list[Tensor] = self.network.forward_intermediates(
            ((pixels + 1) / 2 - self.mean) / self.std,
            indices=[block - 1 for block in BLOCKS],
            intermediates_only=True,
        )
        return [each.float() for each in maps]


def reconstruction_loss(
    given: Tensor, wanted: Tensor, features: list[Tensor], wanted_features: list[Tensor]
) -> Tensor:
    """How far pictures are from what they should be: all losses but the adversary's.

    The mean absolute difference of pixels, half that of their gradients, the mean cosine distance
    of features, and a tenth of the difference of texture, see `texture_loss`.

    Args:
        features, wanted_features: of both, as `PatchFeatures` gives them.
    """
    loss = (given - wanted).abs().mean()
    for a, b in zip(gradients(given), gradients(wanted), strict=True):
        loss = loss + GRADIENT_WEIGHT * (a - b).abs().mean()
    for a, b in zip(features, wanted_features, strict=True):
        loss = loss + (1 - F.cosine_similarity(a, b, dim=1)).mean() / len(features)
    return loss + TEXTURE_WEIGHT * texture_loss(given, wanted)


def gradients(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbours, down and across."""
    return pictures.diff(dim=-2), pictures.diff(dim=-1)


def texture_loss(given: Tensor, wanted: Tensor) -> Tensor:
    """Mean absolute difference of the logarithms of `band_energies`.

    Grass need not have every blade in its place, but as many of them.
    """
    pairs = zip(band_energies(given), band_energies(wanted), strict=True)
    losses = [((a + _FAINT).log() - (b + _FAINT).log()).abs().mean() for a, b in pairs]
    return torch.stack(losses).mean()


def band_energies(pictures: Tensor) -> list[Tensor]:
    """Mean strength of three octaves of the grey picture's Laplacian pyramid, over 8x8 cells."""
    low, energies = pictures.mean(1, keepdim=True), []
    for _ in range(_BANDS):
        high, low = low, F.avg_pool2d(low, 2)
        band = high - F.interpolate(low, size=high.shape[-2:], mode="bilinear")
        energies.append(F.avg_pool2d(band.abs(), _CELL))
    return energies


def patch_judge(width: int = 64) -> nn.Sequential:
    """Tells real pictures, above 0, from made ones, patch by patch (Isola et al. 2017)."""
    layers: list[nn.Module] = []
    channels = 3
    for out, kernel, stride in ((1, 4, 2), (2, 4, 2), (4, 4, 2), (4, 3, 1)):
        conv = nn.Conv2d(channels, out * width, kernel, stride, padding=1)
        layers += [nn.utils.parametrizations.spectral_norm(conv), nn.LeakyReLU(0.2)]
        channels = out * width
    return nn.Sequential(*layers, nn.Conv2d(channels, 1, 3, padding=1))


def judge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The hinge loss of a judge, given what it says of real and of made pictures."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def adversary_loss(verdict: Tensor, other: Tensor, last: Tensor) -> Tensor:
    """The judge's pull towards what it takes for real, `ADVERSARY_WEIGHT` as strong as the others'.

    Strengths are compared where both meet, at the decoder's last weights (Esser et al. 2021).

    Args:
        verdict: of the judge on the pictures made.
        other: the sum of the other losses.
        last: weights of the decoder's last convolution.
    """
    loss = -verdict.mean()
    pulls = [torch.autograd.grad(of, last, retain_graph=True)[0].norm() for of in (other, loss)]
    weight: Tensor = ADVERSARY_WEIGHT * (pulls[0] / (pulls[1] + 1e-6)).clamp(0, 100)
    return weight * loss
