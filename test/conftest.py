"""Fixtures shared by unit and integration tests."""

from __future__ import annotations

import os
from pathlib import Path

# Tiny networks only lose time to a second thread, most of all when several processes share the
# cores. Inherited by the processes that tests start; set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
import yaml
from diffusers import DDPMPipeline, UNet2DModel

from anomaly_detector_ros.synthesis.schedule import Schedule

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real off-road images beside the checkout; tests that need them skip without."""
    return _shared("data", "evaluation images")


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """Published weights beside the checkout; tests that need them skip without."""
    return _shared("models", "published weights")


def _shared(folder: str, what: str) -> Path:
    if not (SHARED / folder).is_dir():
        pytest.skip(f"no {what} at {SHARED / folder}")
    return SHARED / folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers model directory with a tiny U-Net of random weights."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=(16, 24),
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


@pytest.fixture(scope="session")
def light_profile(tiny_model: Path) -> str:
    """Path of a profile file: random tiny U-Net, RGB features, no segmenter, no fetched weights."""
    profile = {
        "denoiser": {"model": str(tiny_model), "size": [16, 24], "dtype": "float32"},
        "sampler": {"name": "few_step", "noise_level": 0.5, "steps": 2, "num_edits": 1, "seed": 0},
        "features": {"name": "rgb", "input_size": [32, 48]},
        "upsampler": {"name": "bilinear"},
        "segmenter": {"name": "none"},
        "threshold": 0.3,
    }
    file = tiny_model.parent / "light.yaml"
    file.write_text(yaml.safe_dump({"light_test": profile}))
    return str(file)
