from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.features.clip import Clip, ClipFeatures, MaskClip, clip_hub_file
from anomaly_detector_ros.features.preprocessing import IMAGENET_MEAN, normalise

MODEL = "ViT-S-16-alt"  # no published weights: 256 channels, 10 blocks
UNTAGGED = MaskClip(model=MODEL, pretrained=None)
KINDS = {"maskclip": UNTAGGED, "clip": Clip(model=MODEL, pretrained=None)}
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def clip() -> open_clip.CLIP:
    """The whole model with random weights, so that every term of the sums counts."""
    torch.manual_seed(0)
    config = open_clip.get_model_config(MODEL)
    text = {"context_length": 4, "vocab_size": 5, "width": 8, "heads": 1, "layers": 1}
    model = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], text).eval()
    with torch.no_grad():
        for parameter in model.visual.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.fixture(scope="module")
def file(clip: open_clip.CLIP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "open_clip_model.safetensors"
    save_file(clip.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 100, 120, generator=torch.Generator().manual_seed(1)) * 2 - 1


def _layer_norm(x: Tensor, state: State, name: str) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    scale = (centred.square().mean(dim=-1, keepdim=True) + 1e-5).rsqrt()
    return centred * scale * state[f"{name}.weight"] + state[f"{name}.bias"]


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x @ weight.T + bias


def _embed(pixels: Tensor, state: State) -> Tensor:
    """Tokens of a 224 x 224 image: patches times the kernel, class token, positions, norm."""
    kernel = state["conv1.weight"]
    patches = pixels.unfold(2, 16, 16).unfold(3, 16, 16)  # (B, 3, 14, 14, 16, 16)
    patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    tokens = patches @ kernel.flatten(1).T
    first = state["class_embedding"].expand(len(tokens), 1, -1)
    x = torch.cat([first, tokens], dim=1) + state["positional_embedding"]
    return _layer_norm(x, state, "ln_pre")


def _block(x: Tensor, state: State, index: int, heads: int) -> Tensor:
    name = f"transformer.resblocks.{index}"
    y = _layer_norm(x, state, f"{name}.ln_1")
    qkv = _linear(y, state[f"{name}.attn.in_proj_weight"], state[f"{name}.attn.in_proj_bias"])
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1)
    y = (weights @ v).transpose(1, 2).flatten(2)
    out = f"{name}.attn.out_proj"
    x = x + _linear(y, state[f"{out}.weight"], state[f"{out}.bias"])
    y = _layer_norm(x, state, f"{name}.ln_2")
    y = _linear(y, state[f"{name}.mlp.c_fc.weight"], state[f"{name}.mlp.c_fc.bias"])
    y = y * 0.5 * (1 + torch.erf(y / 2**0.5))
    return x + _linear(y, state[f"{name}.mlp.c_proj.weight"], state[f"{name}.mlp.c_proj.bias"])


def _values(x: Tensor, state: State, index: int) -> Tensor:
    """The last block where every token attends to itself alone."""
    name = f"transformer.resblocks.{index}"
    width = x.shape[-1]
    y = _layer_norm(x, state, f"{name}.ln_1")
    y = _linear(
        y,
        state[f"{name}.attn.in_proj_weight"][2 * width :],
        state[f"{name}.attn.in_proj_bias"][2 * width :],
    )
    out = f"{name}.attn.out_proj"
    return _linear(y, state[f"{out}.weight"], state[f"{out}.bias"])


@pytest.mark.parametrize("dense", ["maskclip", "clip"])
def test_features_are_the_plain_matrix_products(
    dense: str, clip: open_clip.CLIP, file: Path, images: Tensor
) -> None:
    extractor = ClipFeatures(KINDS[dense], file, input_size=(224, 224))
    state = {name: value.detach() for name, value in clip.visual.state_dict().items()}
    blocks = len(clip.visual.transformer.resblocks)
    heads = clip.visual.transformer.resblocks[0].attn.num_heads
    x = _embed(normalise(images, (224, 224), extractor.mean, extractor.std), state)
    for index in range(blocks - 1):
        x = _block(x, state, index, heads)
    last = blocks - 1
    x = _values(x, state, last) if dense == "maskclip" else _block(x, state, last, heads)
    x = _layer_norm(x[:, 1:], state, "ln_post") @ state["proj"]
    want = x.transpose(1, 2).unflatten(2, (14, 14))
    got = extractor.extract(images)
    assert got.shape == (2, 256, 14, 14)
    assert (got - want).abs().max() < 1e-5 * want.abs().max()


def test_clip_tokens_are_open_clips_own(
    clip: open_clip.CLIP, file: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = ClipFeatures(KINDS["clip"], file, input_size=(224, 224))
    monkeypatch.setattr(clip.visual, "output_tokens", True)
    with torch.no_grad():
        pixels = normalise(images, (224, 224), extractor.mean, extractor.std)
        _, tokens = clip.visual(pixels)
        want = (tokens @ clip.visual.proj).transpose(1, 2).unflatten(2, (14, 14))
    torch.testing.assert_close(extractor.extract(images), want, rtol=1e-4, atol=1e-4)


def test_maskclip_keeps_a_patch_to_itself_in_the_last_block(file: Path) -> None:
    """With one block left, the value path has no way from one patch to another."""
    made = [ClipFeatures(KINDS[dense], file, input_size=(64, 64)) for dense in ("maskclip", "clip")]
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    other = image.clone()
    other[..., :16, :16] *= -1
    for extractor in made:
        extractor._network.transformer.resblocks = extractor._network.transformer.resblocks[-1:]
    maskclip, full = (
        (extractor.extract(image) - extractor.extract(other)).abs().amax(dim=1)[0]
        for extractor in made
    )
    assert maskclip[0, 0] > 0.1
    assert maskclip.flatten()[1:].max() < 1e-5
    assert full.flatten()[1:].min() > 1e-4


def test_positions_are_resampled_for_other_sizes(file: Path, images: Tensor) -> None:
    extractor = ClipFeatures(UNTAGGED, file, input_size=64)
    assert extractor.extract(images).shape == (2, 256, 4, 5)
    assert extractor.extract(images.transpose(2, 3)).shape == (2, 256, 5, 4)


def test_bfloat16_is_close_to_float32(file: Path, images: Tensor) -> None:
    exact, rough = (
        ClipFeatures(UNTAGGED, file, input_size=64, dtype=dtype).extract(images)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    assert torch.cosine_similarity(exact, rough, dim=1).min() > 0.99


def test_openais_network_has_its_activation_pixels_and_channels() -> None:
    extractor = ClipFeatures(MaskClip(), None, input_size=(32, 48))
    assert extractor.extract(torch.zeros(1, 3, 20, 30)).shape == (1, 512, 2, 3)
    activation = extractor._network.transformer.resblocks[0].mlp.gelu
    assert type(activation).__name__ == "QuickGELU"
    assert extractor.mean == open_clip.OPENAI_DATASET_MEAN
    assert extractor.std == open_clip.OPENAI_DATASET_STD
    imagenet = ClipFeatures(replace(UNTAGGED, as_in_featup=True), None)
    assert imagenet.mean == IMAGENET_MEAN


def test_plain_tensor_files_do_and_pickled_code_does_not(
    clip: open_clip.CLIP, file: Path, images: Tensor, tmp_path: Path
) -> None:
    state = {f"module.{name}": value for name, value in clip.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "trained.pt")
    made = [
        ClipFeatures(UNTAGGED, path, input_size=32).extract(images)
        for path in (file, tmp_path / "trained.pt")
    ]
    assert torch.equal(*made)
    torch.save({"state_dict": torch.nn.Linear(1, 1)}, tmp_path / "module.pt")
    with pytest.raises(UserError, match="not a file of plain tensors: convert it"):
        ClipFeatures(UNTAGGED, tmp_path / "module.pt")
    (tmp_path / "noise.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(UserError, match="not a safetensors file"):
        ClipFeatures(UNTAGGED, tmp_path / "noise.safetensors")
    (tmp_path / "clip.onnx").write_bytes(b"")
    with pytest.raises(UserError, match="unknown kind of weights file"):
        ClipFeatures(UNTAGGED, tmp_path / "clip.onnx")


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("ViT-B-17", {}, "unknown model 'ViT-B-17'"),
        ("ViT-B-16", {"pretrained": "closedai"}, "unknown weights 'closedai': take one of openai"),
        ("RN50", {}, "not a plain vision transformer"),
        (MODEL, {"pretrained": "openai"}, "pretrained: null"),
    ],
)
def test_settings_out_of_range_are_refused(model: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ClipFeatures(MaskClip(model=model, **options), None)


def test_sizes_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="multiples of 16"):
        ClipFeatures(UNTAGGED, None, input_size=100)


def test_weights_of_another_model_are_refused(file: Path) -> None:
    with pytest.raises(UserError, match="not weights of ViT-S-32-alt"):
        ClipFeatures(MaskClip(model="ViT-S-32-alt", pretrained=None), file)


def test_the_hubs_cache_serves_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo = "timm/vit_base_patch16_clip_224.openai"
    with pytest.raises(UserError, match=f"open_clip_model.safetensors of {repo} cannot be had"):
        clip_hub_file("ViT-B-16", "openai", offline=True)
    snapshot = tmp_path / f"models--{repo.replace('/', '--')}" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "open_clip_model.safetensors").write_bytes(b"weights")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    assert clip_hub_file("ViT-B-16", "openai", offline=True).read_bytes() == b"weights"
    with pytest.raises(UserError, match="no weights on Hugging Face"):
        clip_hub_file(MODEL, None, offline=True)
