from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.features.networks import resample_position_embedding
from anomaly_detector_ros.features.preprocessing import IMAGENET_MEAN, IMAGENET_STD, normalise
from anomaly_detector_ros.features.timm import ResNet, Timm, TimmFeatures, timm_hub_file
from anomaly_detector_ros.runtime.parts import read_settings

VIT = "test_vit.r160_in1k"  # 6 blocks of 64 channels, 160 x 160, trained with mean and std 0.5
RESNET = "test_resnet.r160_in1k"


def _network(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return network


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 90, 130, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("block", [1, 4, 6])
def test_vit_blocks_are_what_a_hook_sees(block: int, images: torch.Tensor, tmp_path: Path) -> None:
    network = _network(VIT)
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    extractor, with_norm = (
        TimmFeatures(
            Timm(model=VIT, block=block, norm=norm),
            tmp_path / "vit.safetensors",
            input_size=(160, 160),
        )
        for norm in (False, True)
    )
    seen = []
    network.blocks[block - 1].register_forward_hook(lambda m, i, out: seen.append(out))
    with torch.no_grad():
        network(normalise(images, (160, 160), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
        want = seen[0][:, 1:].transpose(1, 2).unflatten(2, (10, 10))
        got = extractor.extract(images)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        normed = with_norm.extract(images)
        want = network.norm(seen[0])[:, 1:].transpose(1, 2).unflatten(2, (10, 10))
    torch.testing.assert_close(normed, want, rtol=1e-4, atol=1e-4)
    assert (extractor.channels, extractor.stride) == (64, 16)


def test_vit_sees_any_size_by_resampled_positions(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    extractor = TimmFeatures(Timm(model=VIT), None, input_size=96)
    assert extractor.extract(images).shape == (2, 64, 6, 9)  # 96 x 139, in whole patches
    assert extractor.extract(images.transpose(2, 3)).shape == (2, 64, 9, 6)
    wide = TimmFeatures(Timm(model=VIT), None, input_size=(32, 64))
    assert wide.extract(images).shape == (2, 64, 2, 4)


@pytest.mark.parametrize(("block", "channels", "stride"), [(None, 96, 32), (5, 96, 32), (3, 48, 8)])
def test_resnet_stages(
    block: int | None, channels: int, stride: int, images: torch.Tensor, tmp_path: Path
) -> None:
    network = _network(RESNET)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "resnet.pth")
    extractor = TimmFeatures(
        Timm(model=RESNET, block=block), tmp_path / "resnet.pth", input_size=(64, 96)
    )
    assert (extractor.channels, extractor.stride) == (channels, stride)
    seen = {}
    for stage in (2, 4):
        layer = getattr(network, f"layer{stage}")
        layer.register_forward_hook(lambda m, i, out, stage=stage: seen.update({stage: out}))
    mean, std = (network.pretrained_cfg[key] for key in ("mean", "std"))
    with torch.no_grad():
        network(normalise(images, (64, 96), mean, std))
    got = extractor.extract(images)
    assert got.shape == (2, channels, 64 // stride, 96 // stride)
    torch.testing.assert_close(got, seen[(block or 5) - 1], rtol=1e-4, atol=1e-5)


def test_resnet50_has_the_papers_shape() -> None:
    extractor = TimmFeatures(ResNet(), None, input_size=64)
    assert extractor.extract(torch.zeros(1, 3, 30, 40)).shape == (1, 2048, 2, 3)


def test_pixels_are_normalised_as_the_model_or_as_imagenet_wants() -> None:
    own, imagenet = (
        TimmFeatures(Timm(model=VIT, as_in_featup=flag), None) for flag in (False, True)
    )
    assert (own.mean, own.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert (imagenet.mean, imagenet.std) == (IMAGENET_MEAN, IMAGENET_STD)


def test_as_in_featup_cells_are_normalised_and_positions_follow_its_rule(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = _network(VIT)
    with torch.no_grad():
        plain.pos_embed.normal_()
    save_file(plain.state_dict(), tmp_path / "vit.safetensors")
    images = torch.rand(1, 3, 64, 96) * 2 - 1
    # 70 x 100 leaves 6 and 4 pixels over, which no patch of 16 sees.
    extractor = TimmFeatures(
        Timm(model=VIT, as_in_featup=True), tmp_path / "vit.safetensors", input_size=(70, 100)
    )
    got = extractor.extract(images)
    pixels = normalise(images, (70, 100), IMAGENET_MEAN, IMAGENET_STD)[..., :64, :96]
    x = plain.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
    x = torch.cat([plain.cls_token, x], dim=1)
    x = x + resample_position_embedding(plain.pos_embed, (4, 6), as_in_featup=True)
    x = plain.norm(plain.blocks(x))[0, 1:]
    expected = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(got[0].flatten(1).T, expected, rtol=0, atol=1e-4)


def test_unneeded_blocks_are_dropped_and_weights_held_once(tmp_path: Path) -> None:
    save_file(_network(VIT).state_dict(), tmp_path / "vit.safetensors")
    extractor = TimmFeatures(Timm(model=VIT, block=2), tmp_path / "vit.safetensors")
    network = extractor._network
    assert len(network.blocks) == 2
    assert network.pretrained_cfg.get("state_dict") is None


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("vit_smal", {}, "unknown model 'vit_smal'"),
        ("test_vit.r161_in1k", {}, "unknown model 'test_vit.r161_in1k': .*test_vit.r160_in1k"),
        ("hf-hub:timm/test_vit.r160_in1k", {}, "unknown model"),
        (VIT, {"block": 7}, "has blocks 1 to 6"),
        (VIT, {"block": 0}, "block is 0: it must be greater than or equal to 1"),
        (VIT, {"input_size": 100}, "multiples of 16"),
        (RESNET, {"input_size": (64, 80)}, "multiples of 32"),
        (VIT, {"dtype": torch.float64}, "float64"),
    ],
)
def test_settings_out_of_range_are_refused(model: str, options: dict, message: str) -> None:
    def build(block: int | None = None, **sizes: Any) -> None:
        settings = read_settings(Timm, {"model": model, "block": block}, "features timm")
        TimmFeatures(settings, None, **sizes)

    with pytest.raises(UserError, match=message):
        build(**options)


def test_a_network_of_one_size_says_so(images: torch.Tensor) -> None:
    settings = Timm(model="test_vit_relpos")
    with pytest.raises(UserError, match="set input_size, or mode tiles with tile_size 160"):
        TimmFeatures(settings, None, input_size=96).extract(images)
    own = TimmFeatures(settings, None, input_size=(160, 160))
    assert own.extract(images).shape[2:] == (10, 10)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_file(_network(RESNET).state_dict(), tmp_path / "resnet.safetensors")
    with pytest.raises(UserError, match="not weights of test_vit") as error:
        TimmFeatures(Timm(model=VIT), tmp_path / "resnet.safetensors")
    assert "\n" not in str(error.value)
    state = _network(VIT).state_dict()
    del state["blocks.0.attn.qkv.weight"]
    save_file(state, tmp_path / "incomplete.safetensors")
    with pytest.raises(UserError, match="not weights of test_vit"):
        TimmFeatures(Timm(model=VIT), tmp_path / "incomplete.safetensors")


def test_the_hubs_cache_serves_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"^test_vit.r160_in1k: model.safetensors of timm/test_vit"):
        timm_hub_file(VIT, offline=True)
    repository = tmp_path / "models--timm--test_vit.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    save_file(_network(VIT).state_dict(), snapshot / "model.safetensors")
    file = timm_hub_file(VIT, offline=True)
    assert file.samefile(snapshot / "model.safetensors")
    assert TimmFeatures(Timm(model=VIT, block=1), file).channels == 64


def test_models_without_published_safetensors_are_refused() -> None:
    with pytest.raises(UserError, match="no weights on Hugging Face: give a file"):
        timm_hub_file("vit_small_patch16_18x2_224", offline=True)
