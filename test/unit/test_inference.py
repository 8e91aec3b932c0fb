"""Networks made ready to run."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.models.attention_processor import AttnProcessor

from anomaly_detector_ros.runtime.inference import ready
from anomaly_detector_ros.synthesis.denoisers.unet import DiffusersDenoiser

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def _transformer() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=0)


def _error(found: torch.Tensor, want: torch.Tensor) -> float:
    return float((found - want).abs().mean() / want.abs().mean())


@DTYPES
def test_attention_of_timm_takes_the_faster_way_and_gives_the_same(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    network, fused = ready(_transformer(), "cpu", dtype), dtype is torch.float32
    with torch.inference_mode():
        want = _transformer().eval()(x)
        with torch.autocast("cpu", dtype, enabled=not fused):
            found = network(x).float()
    assert all(block.attn.fused_attn is fused for block in network.blocks)
    assert _error(found, want) < (1e-6 if fused else 0.02)


@DTYPES
def test_so_does_attention_of_diffusers(dtype: torch.dtype, tmp_path: Path) -> None:
    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
    denoiser, fused = (
        DiffusersDenoiser.from_pretrained(tmp_path, dtype=dtype),
        dtype is torch.float32,
    )
    processors = [each.processor for each in denoiser.unet.modules() if hasattr(each, "processor")]
    assert processors
    assert all((type(each) is AttnProcessor) is not fused for each in processors)
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        want = DiffusersDenoiser.from_pretrained(tmp_path)(x, 500)
        assert _error(denoiser(x, 500), want) < (1e-6 if fused else 0.02)


def test_only_products_and_convolutions_are_converted() -> None:
    network = ready(_transformer(), "cpu", torch.bfloat16)
    assert network.blocks[0].mlp.fc1.weight.dtype is torch.bfloat16
    assert network.patch_embed.proj.weight.dtype is torch.bfloat16
    assert network.blocks[0].norm1.weight.dtype is torch.float32
    assert not any(each.requires_grad for each in network.parameters())
