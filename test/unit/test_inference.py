"""Networks made ready to run."""

from __future__ import annotations

import pytest
import timm
import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import AttnProcessor

from anomaly_detector_ros.runtime.inference import ready


def _transformer() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=0)


def _unet() -> UNet2DModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=16,
            block_out_channels=(32, 64),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_takes_the_faster_way_and_gives_the_same(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        want = _transformer().eval()(x), _unet().eval()(x[..., :16, :16], 3).sample
        vit, unet = ready(_transformer(), "cpu", dtype), ready(_unet(), "cpu", dtype)
        found = vit(x), unet(x[..., :16, :16], 3).sample
    fused = dtype is torch.float32
    assert all(block.attn.fused_attn is fused for block in vit.blocks)
    processors = [each.processor for each in unet.modules() if hasattr(each, "processor")]
    assert processors
    assert all((type(each) is AttnProcessor) is not fused for each in processors)
    for one, other in zip(found, want, strict=True):
        error = (one.float() - other.float()).abs().mean() / other.float().abs().mean()
        assert error < (1e-6 if fused else 0.02)


def test_only_products_and_convolutions_are_converted() -> None:
    network = ready(_transformer(), "cpu", torch.bfloat16)
    assert network.blocks[0].mlp.fc1.weight.dtype == network.patch_embed.proj.weight.dtype
    assert network.blocks[0].mlp.fc1.weight.dtype is torch.bfloat16
    assert network.blocks[0].norm1.weight.dtype is torch.float32
    assert not any(each.requires_grad for each in network.parameters())
