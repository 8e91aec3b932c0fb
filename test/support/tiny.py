"""A detector that runs in milliseconds: a random tiny U-Net, RGB features, no segmenter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def save_tiny_unet(directory: Path, size: tuple[int, int] = (16, 24)) -> Path:
    """Writes a diffusers model directory with random weights. Returns the directory."""
    import torch
    from diffusers import DDPMPipeline, UNet2DModel

    from anomaly_detector_ros.synthesis.schedule import Schedule

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=size,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    DDPMPipeline(unet, Schedule.named("cosine").to_diffusers()).save_pretrained(directory)
    return directory


def write_profile(file: Path, model: Path, **changes: Any) -> Path:
    """Writes a profile file that runs ``model``; ``changes`` replace parts. Returns the file."""
    profile = {
        "denoiser": {"model": str(model), "size": [16, 24], "dtype": "float32"},
        "sampler": {"name": "few_step", "noise_level": 0.5, "steps": 2, "num_edits": 1, "seed": 0},
        "features": {"name": "rgb", "input_size": [32, 48]},
        "upsampler": {"name": "bilinear"},
        "segmenter": {"name": "none"},
        "threshold": 0.3,
    }
    file.write_text(yaml.safe_dump({file.stem: {**profile, **changes}}))
    return file
