"""What decides the result of a training run, and the networks it trains."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from diffusers import UNet2DModel
from pydantic import AfterValidator

from anomaly_detector_ros.errors import as_user_error
from anomaly_detector_ros.synthesis.autoencoder import FACTOR, Autoencoder
from anomaly_detector_ros.synthesis.schedule import BETA_SCHEDULES
from anomaly_detector_ros.training.defaults import SHIPPED_AUTOENCODER

SIZE_PRESETS = {
    "small": (32, 64, 128, 192),
    "base": (64, 128, 256, 448),
}
"""Channels of a pixel U-Net's levels: 7.1 and 35.0 million parameters (the paper's has 35.7)."""

LATENT_PRESETS = {
    "small": (64, 128, 192),
    "base": (128, 192, 256),
}
"""Channels of a latent U-Net's levels: 7.4 and 15.5 million parameters."""

AUTOENCODER: Mapping[str, Any] = {
    "latent_channels": 8,
    "channels": (64, 96, 144),
    "encoder_blocks": (1, 1, 2),
    "decoder_blocks": (2, 3, 4),
}
"""An `Autoencoder` of 4.1 million parameters."""


def one_of(choices: Collection[str]) -> AfterValidator:
    """For an annotation: one of these texts."""

    def check(text: str) -> str:
        if text not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return text

    return AfterValidator(check)


Side = Annotated[int, Ge(16), MultipleOf(8)]
# What a network must have in common with the one whose weights it starts from.
_INTERFACE = ("in_channels", "out_channels", "latent_channels")
Network = TypeVar("Network", UNet2DModel, Autoencoder)


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that, with the images, decides the result of a run; for `read_settings`.

    Attributes:
        stage: a denoiser of pixels, an autoencoder, or a denoiser of an autoencoder's latents.
        size: training height and width in pixels, multiples of 8.
        preset: key of `SIZE_PRESETS` or `LATENT_PRESETS`, the width of a denoiser that starts from
            random weights.
        steps: optimiser steps in all.
        batch_size: images a step and process.
        learning_rate: peak of the AdamW rate; linear warm-up, cosine decay to a tenth.
        warmup_steps: steps of the warm-up.
        ema_decay: decay of the exponential moving average of the weights, which is what is saved.
        beta_schedule: see `synthesis.schedule.make_betas`.
        min_crop: the smallest crop as a share of each side of the image, in (0, 1]; of an
            autoencoder's crops, which are not resized, the share that all have.
        seed: of weights, batches, noise and timesteps.
        init: a model directory whose weights to start from (at any image size), or None.
        autoencoder: name in the registry, or the path, with a slash, of a model directory with
            ``vae/``: the one whose latents a ``denoiser`` is trained on.
    """

    stage: Literal["pixels", "autoencoder", "denoiser"] = "pixels"
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
    autoencoder: str = SHIPPED_AUTOENCODER


def build_unet(config: TrainingConfig) -> UNet2DModel:
    """A U-Net with one residual layer a block and attention at the lowest resolution only.

    Its random weights come from torch's global generator, unless ``config.init`` names others.

    Raises:
        UserError: ``config.init`` is no such model.
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
    return _started(unet, config, "unet")


def build_latent_unet(config: TrainingConfig, latent_channels: int) -> UNet2DModel:
    """A U-Net for `InpaintingUnet`, with attention at its two lower levels; see `build_unet`."""
    height, width = config.size
    unet = UNet2DModel(
        sample_size=(height // FACTOR, width // FACTOR),
        in_channels=2 * latent_channels + 1,
        out_channels=latent_channels,
        layers_per_block=1,
        block_out_channels=LATENT_PRESETS[config.preset],
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=64,
        dropout=0.1,
    )
    return _started(unet, config, "unet")


def build_autoencoder(config: TrainingConfig) -> Autoencoder:
    """An autoencoder; see `build_unet`."""
    autoencoder: Autoencoder = _started(Autoencoder(**AUTOENCODER), config, "vae")
    return autoencoder


def _started(network: Network, config: TrainingConfig, part: str) -> Network:
    """The network, or in its place the one of ``config.init``, whatever its width and depth."""
    directory = config.init
    if directory is None:
        return network
    remedy = "give a model directory of the same stage"
    with as_user_error(f"cannot start from the weights of '{directory}'", remedy):
        given: Network = type(network).from_pretrained(
            directory, subfolder=part, use_safetensors=True, local_files_only=True
        )
        for setting in _INTERFACE:
            if given.config.get(setting) != network.config.get(setting):
                raise ValueError(f"{setting} is {given.config.get(setting)}")
    if "sample_size" in network.config:
        given.register_to_config(sample_size=network.config.sample_size)
    given.float().train()
    return given
