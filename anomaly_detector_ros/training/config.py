"""What decides the result of a training run, and the network it trains."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from diffusers import UNet2DModel
from pydantic import AfterValidator

from anomaly_detector_ros.errors import as_user_error
from anomaly_detector_ros.synthesis.schedule import BETA_SCHEDULES

SIZE_PRESETS = {
    "small": (32, 64, 128, 192),
    "base": (64, 128, 256, 448),
}
"""Channels of the U-Net's levels: 7.1 and 35.0 million parameters (the paper's has 35.7)."""


def one_of(choices: Collection[str]) -> AfterValidator:
    """For an annotation: one of these texts."""

    def check(text: str) -> str:
        if text not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return text

    return AfterValidator(check)


Side = Annotated[int, Ge(16), MultipleOf(8)]


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that, with the images, decides the result of a run; for `read_settings`.

    Attributes:
        size: training height and width in pixels, multiples of 8.
        preset: key of `SIZE_PRESETS`, the width of the U-Net.
        steps: optimiser steps in all.
        batch_size: images a step and process.
        learning_rate: peak of the AdamW rate; linear warm-up, cosine decay to a tenth.
        warmup_steps: steps of the warm-up.
        ema_decay: decay of the exponential moving average of the weights, which is what is saved.
        beta_schedule: see `synthesis.schedule.make_betas`.
        min_crop: the smallest crop as a share of each side of the image, in (0, 1].
        seed: of weights, batches, noise and timesteps.
        init: a model directory whose weights to start from (at any image size), or None.
    """

    size: tuple[Side, Side] = (64, 120)
    preset: Annotated[str, one_of(SIZE_PRESETS)] = "small"
    steps: Annotated[int, Ge(1)] = 20_000
    batch_size: Annotated[int, Ge(1)] = 8
    learning_rate: Annotated[float, Gt(0)] = 4e-4
    warmup_steps: Annotated[int, Ge(0)] = 300
    ema_decay: Annotated[float, Ge(0), Lt(1)] = 0.999
    beta_schedule: Annotated[str, one_of(BETA_SCHEDULES)] = "cosine"
    min_crop: Annotated[float, Gt(0), Le(1)] = 0.8
    seed: int = 0
    init: str | None = None


def build_unet(config: TrainingConfig) -> UNet2DModel:
    """A U-Net with one residual layer a block and attention at the lowest resolution only.

    Its random weights come from torch's global generator, unless ``config.init`` names others.

    Raises:
        UserError: ``config.init`` is no model of this shape.
    """
    channels = SIZE_PRESETS[config.preset]
    plain = len(channels) - 1
    unet = UNet2DModel(
        sample_size=config.size,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=channels,
        down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
    )
    if config.init:
        _load_weights(unet, config.init)
    return unet


def _load_weights(unet: UNet2DModel, directory: str) -> None:
    with as_user_error(
        f"cannot start from the weights of '{directory}'",
        "give a model directory of the same preset",
    ):
        given = UNet2DModel.from_pretrained(
            directory, subfolder="unet", use_safetensors=True, local_files_only=True
        )
        unet.load_state_dict(given.state_dict())
