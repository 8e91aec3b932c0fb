from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import helper, numpy_helper
from safetensors.torch import save_file

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.features.base import FEATURES
from anomaly_detector_ros.features.dinov2 import DinoV2, DinoV2Features
from anomaly_detector_ros.features.dinov2_weights import load_dinov2_weights
from anomaly_detector_ros.features.networks import FeatureExtractor, resample_position_embedding
from anomaly_detector_ros.features.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    network_size,
    normalise,
)
from anomaly_detector_ros.features.rgb import RgbFeatures
from anomaly_detector_ros.features.upsampling import upsample_bilinear
from anomaly_detector_ros.runtime.parts import read_settings
from anomaly_detector_ros.weights.loading import Loader
from anomaly_detector_ros.weights.registry import Registry

SIZE = (42, 70)  # a grid of 3 x 5
SIDE = 4  # of the stored position grid
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """A DINOv2 ViT-S/14 of three blocks with random weights that all differ."""
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_small_patch14_dinov2", pretrained=False, num_classes=0, depth=3, img_size=SIDE * 14
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


@pytest.fixture(scope="module")
def state(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _huggingface(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The same weights under the names of transformers' Dinov2Model."""
    out = {}
    for name, value in state.items():
        if ".attn.qkv." in name:
            block, kind = name.split(".")[1], name.rsplit(".", 1)[1]
            for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                out[f"encoder.layer.{block}.attention.attention.{part}.{kind}"] = piece.clone()
            continue
        for ours, theirs in (
            ("blocks.", "encoder.layer."),
            (".attn.proj.", ".attention.output.dense."),
            (".ls1.gamma", ".layer_scale1.lambda1"),
            (".ls2.gamma", ".layer_scale2.lambda1"),
            ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
        ):
            name = name.replace(ours, theirs)
        name = {
            "cls_token": "embeddings.cls_token",
            "pos_embed": "embeddings.position_embeddings",
            "norm.weight": "layernorm.weight",
            "norm.bias": "layernorm.bias",
        }.get(name, name)
        out[name] = value.clone()
    return {prefix + name: value for name, value in out.items()}


def _exported_graph(state: dict[str, torch.Tensor], *, linear: str = "MatMul") -> onnx.ModelProto:
    """What an export of the Hugging Face model keeps of names: matrices lose theirs."""
    named = _huggingface(state, "backbone.")
    positions = named.pop("backbone.embeddings.position_embeddings").numpy()
    constants = {
        "onnx::Concat_7": positions[:, :1],
        "onnx::Reshape_8": positions[:, 1:],
    }
    nodes = [
        helper.make_node("Reshape", ["onnx::Reshape_8", "shape"], ["p1"]),
        helper.make_node("Transpose", ["p1"], ["p2"]),
        helper.make_node("Resize", ["p2", "", "", "size"], ["p3"]),
        helper.make_node("Reshape", ["p3", "shape"], ["p4"]),
        helper.make_node("Concat", ["onnx::Concat_7", "p4"], ["p5"], axis=1),
    ]
    for index, (name, value) in enumerate(named.items()):
        is_linear = name.endswith(".weight") and value.ndim == 2
        if not is_linear:
            constants[name] = value.numpy()
            continue
        anonymous = f"onnx::MatMul_{index}"
        constants[anonymous] = np.ascontiguousarray(value.numpy().T)
        bias = name[: -len("weight")] + "bias"
        product = f"product{index}"
        nodes.append(helper.make_node(linear, [f"in{index}", anonymous], [product]))
        # Exports put the bias on either side.
        sides = [bias, product] if index % 2 else [product, bias]
        nodes.append(helper.make_node("Add", sides, [f"out{index}"]))
    graph = helper.make_graph(
        nodes, "g", [], [], [numpy_helper.from_array(v, n) for n, v in constants.items()]
    )
    return helper.make_model(graph)


def test_official_safetensors_give_the_tokens_of_the_chosen_block(
    network: torch.nn.Module, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    file = tmp_path / "dinov2.safetensors"
    save_file({**state, "mask_token": torch.zeros(1, 384)}, file)
    size = (SIDE * 14, SIDE * 14)
    extractor = DinoV2Features(DinoV2(block=2), file, input_size=size)
    seen = []
    handle = network.blocks[1].register_forward_hook(lambda m, i, out: seen.append(out))
    images = torch.rand(2, 3, *size) * 2 - 1
    with torch.no_grad():
        network(normalise(images, size, IMAGENET_MEAN, IMAGENET_STD))
    handle.remove()
    want = seen[0][:, 1:].transpose(1, 2).reshape(2, 384, SIDE, SIDE)
    torch.testing.assert_close(extractor.extract(images), want, rtol=1e-4, atol=1e-5)


def test_norm_is_the_backbones_final_norm(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    file = tmp_path / "dinov2.safetensors"
    save_file(state, file)
    images = torch.rand(1, 3, 50, 60) * 2 - 1
    plain = DinoV2Features(DinoV2(block=1), file, input_size=SIZE).extract(images)
    normed = DinoV2Features(DinoV2(block=1, norm=True), file, input_size=SIZE).extract(images)
    want = torch.nn.functional.layer_norm(
        plain.movedim(1, -1), (384,), state["norm.weight"], state["norm.bias"], eps=1e-6
    ).movedim(-1, 1)
    torch.testing.assert_close(normed, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prefix", ["", "dinov2."])
def test_huggingface_safetensors_give_the_same_weights(
    state: dict[str, torch.Tensor], tmp_path: Path, prefix: str
) -> None:
    file = tmp_path / "model.safetensors"
    save_file(_huggingface(state, prefix), file)
    got = load_dinov2_weights(file, 3)
    assert got.keys() == state.keys()
    assert all(torch.equal(got[name], state[name]) for name in state)


def test_onnx_gives_the_same_weights_by_following_the_graph(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    file = tmp_path / "model.onnx"
    onnx.save(_exported_graph(state), file)
    got = load_dinov2_weights(file, 3)
    assert got.keys() == state.keys()
    assert all(torch.equal(got[name], state[name]) for name in state)


def test_only_the_needed_blocks_are_read(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    onnx.save(_exported_graph(state), tmp_path / "a.onnx")
    save_file(_huggingface(state, ""), tmp_path / "b.safetensors")
    save_file(state, tmp_path / "c.safetensors")
    for file in sorted(tmp_path.iterdir()):
        blocks = {n.split(".")[1] for n in load_dinov2_weights(file, 2) if n.startswith("blocks.")}
        assert blocks == {"0", "1"}, file


def test_files_without_the_backbone_are_refused(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    onnx.save(_exported_graph(state, linear="Gemm"), tmp_path / "gemm.onnx")
    graph = _exported_graph(state)
    del graph.graph.node[4]  # the Concat of the positions
    onnx.save(graph, tmp_path / "positions.onnx")
    (tmp_path / "noise.onnx").write_bytes(b"not an ONNX file at all" * 10)
    (tmp_path / "noise.safetensors").write_bytes(b"x" * 64)
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    for file in sorted(tmp_path.iterdir()):
        with pytest.raises(UserError, match=r"not a (DINOv2 backbone|usable ONNX file)"):
            load_dinov2_weights(file, 3)
    with pytest.raises(UserError, match="no such weights file"):
        load_dinov2_weights(tmp_path / "absent.onnx", 3)
    (tmp_path / "weights.pt").write_bytes(b"")
    with pytest.raises(UserError, match="unknown kind"):
        load_dinov2_weights(tmp_path / "weights.pt", 1)


def test_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    base = timm.create_model(
        "vit_base_patch14_dinov2", pretrained=False, num_classes=0, depth=1, img_size=56
    )
    save_file(base.state_dict(), tmp_path / "base.safetensors")
    with pytest.raises(UserError, match="not DINOv2 ViT-S/14 weights"):
        DinoV2Features(DinoV2(block=1), tmp_path / "base.safetensors", input_size=SIZE)


@pytest.mark.parametrize("shape", [(1, 3, 60, 80), (2, 3, 480, 33), (3, 3, *SIZE)])
def test_features_have_the_grid_of_the_input_size_whatever_the_images(
    shape: tuple[int, ...],
) -> None:
    extractor = DinoV2Features(DinoV2(block=1), None, input_size=SIZE)
    maps = extractor.extract(torch.rand(shape) * 2 - 1)
    assert maps.shape == (shape[0], extractor.channels, 3, 5)
    assert maps.dtype == torch.float32


def test_bfloat16_is_close_to_float32(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "w.safetensors")
    images = torch.rand(1, 3, *SIZE) * 2 - 1
    exact, rough = (
        DinoV2Features(
            DinoV2(block=3), tmp_path / "w.safetensors", input_size=SIZE, dtype=dtype
        ).extract(images)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    assert torch.cosine_similarity(exact, rough, dim=1).min() > 0.999


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": 0}, "block is 0"),
        ({"block": 13}, "block is 13: it must be less than or equal to 12"),
        ({"input_size": (100, 140)}, "multiples of 14"),
        ({"input_size": (0, 14)}, "multiples of 14"),
        ({"input_size": 224}, "height, width"),
        ({"dtype": torch.float64}, "float64"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict, message: str) -> None:
    def build(block: int = 9, **sizes: Any) -> None:
        settings = read_settings(DinoV2, {"block": block}, "features dinov2")
        DinoV2Features(settings, None, **sizes)

    with pytest.raises(UserError, match=message):
        build(**options)


def test_position_embedding_resamples_the_grid_and_keeps_the_class_token() -> None:
    ramp = torch.arange(6.0).repeat(6, 1)  # grows with x
    patches = torch.stack([ramp, ramp.T], dim=-1).reshape(1, 36, 2)
    embedding = torch.cat([torch.full((1, 1, 2), 9.0), patches], dim=1)
    assert torch.equal(resample_position_embedding(embedding, (6, 6)), embedding)
    got = resample_position_embedding(embedding, (3, 12))
    assert got.shape == (1, 37, 2)
    assert torch.equal(got[:, 0], embedding[:, 0])
    grid = got[0, 1:].reshape(3, 12, 2)
    # Away from the borders a ramp stays (nearly) linear, centres being at (i + .5) * ratio - .5;
    # torch's cubic is off by up to 0.05, a shift by half a pixel would be off by 0.25.
    want_x = (torch.arange(12) + 0.5) * 0.5 - 0.5
    torch.testing.assert_close(grid[1, 4:8, 0], want_x[4:8], atol=0.06, rtol=0)
    assert (grid[1, :, 0].diff() > 0).all()
    assert (grid[:, 5, 1].diff() > 0).all()
    with pytest.raises(UserError, match="square"):
        resample_position_embedding(torch.zeros(1, 1 + 12, 2), (3, 4))


def _cubic(x: float) -> float:
    """The kernel of bicubic interpolation in torch, a = -0.75 (Keys 1981)."""
    x = abs(x)
    if x < 1:
        return 1.25 * x**3 - 2.25 * x**2 + 1
    return -0.75 * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def test_featups_positions_step_by_14_over_n_and_a_tenth() -> None:
    torch.manual_seed(0)
    rows = torch.randn(14)
    embedding = torch.zeros(1, 1 + 14 * 14, 1)
    embedding[0, 1:, 0] = rows.repeat_interleave(14)
    got = resample_position_embedding(embedding, (34, 42), as_in_featup=True)[0, 1:, 0]
    assert got.shape == (34 * 42,)
    for i in (0, 9, 20, 33):  # of the 34 rows of 546 pixels in patches of 16
        x = (i + 0.5) * 14 / 34.1 - 0.5
        taps = range(int(np.floor(x)) - 1, int(np.floor(x)) + 3)
        expected = sum(_cubic(x - k) * float(rows[min(max(k, 0), 13)]) for k in taps)
        assert float(got[i * 42 + 5]) == pytest.approx(expected, abs=1e-5)
    square = resample_position_embedding(embedding, (14, 14), as_in_featup=True)
    assert torch.equal(square, embedding)


def test_normalise_maps_black_and_white_to_imagenets_values() -> None:
    images = torch.stack([torch.full((3, 4, 4), -1.0), torch.full((3, 4, 4), 1.0)])
    black, white = normalise(images, (8, 6), IMAGENET_MEAN, IMAGENET_STD)
    assert black.shape == (3, 8, 6)
    torch.testing.assert_close(black[:, 0, 0], torch.tensor([-2.117904, -2.035714, -1.804444]))
    torch.testing.assert_close(white[:, 0, 0], torch.tensor([2.248908, 2.428571, 2.64]))


def test_rgb_features_are_the_resized_colours() -> None:
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(RgbFeatures().extract(images), images.float())
    small = RgbFeatures(input_size=(1, 1)).extract(images)
    assert small.shape == (2, 3, 1, 1)
    # Antialiasing weighs the whole image: bright columns at the border count.
    flat = RgbFeatures(input_size=(2, 2)).extract(torch.full((1, 3, 64, 64), 0.25))
    torch.testing.assert_close(flat, torch.full((1, 3, 2, 2), 0.25))


def test_shrinking_averages_instead_of_skipping_pixels() -> None:
    stripes = torch.zeros(1, 3, 32, 32)
    stripes[..., ::4] = 1.0
    got = RgbFeatures(input_size=(4, 4)).extract(stripes)
    torch.testing.assert_close(got[..., 1:3], torch.full((1, 3, 4, 2), 0.25), atol=0.02, rtol=0)


def test_network_size_keeps_the_aspect_ratio_in_whole_cells() -> None:
    assert network_size((550, 688), (64, 48), 16) == (64, 48)
    assert network_size((550, 688), 224, 16) == (224, 288)
    assert network_size((688, 550), 896, 16) == (1120, 896)
    assert network_size((10, 1000), 32, 32) == (32, 3200)
    for height, width in ((96, 173), (501, 333), (64, 64)):
        size = network_size((height, width), 224, 14)
        assert min(size) == 224
        assert abs(max(size) - 224 * max(height, width) / min(height, width)) <= 7


def _random(name: str, **settings: object) -> dict[str, object]:
    return {"name": name, "weights": "random", **settings}


def make_features(**settings: object) -> FeatureExtractor:
    loader = Loader(Registry.default(), torch.device(CPU), offline=True)
    return FEATURES.read(settings).build(loader)


def test_make_features_by_name() -> None:
    rgb = make_features(name="rgb", input_size=[16, 24])
    assert rgb.extract(torch.zeros(1, 3, 30, 30)).shape == (1, 3, 16, 24)
    rgb = make_features(name="rgb", input_size=16)
    assert rgb.extract(torch.zeros(1, 3, 30, 45)).shape == (1, 3, 16, 24)
    with pytest.raises(UserError, match=r"unknown features 'clap'.*: choose one of clip, dino"):
        make_features(name="clap")
    with pytest.raises(UserError, match="features rgb has no setting 'blocks'"):
        make_features(name="rgb", blocks=3)
    with pytest.raises(UserError, match=r"input_size is 'big': .* integer.* or a valid tuple"):
        make_features(name="rgb", input_size="big")


@pytest.mark.parametrize(
    ("settings", "channels", "stride"),
    [
        (_random("dino", block=1, dtype="bfloat16"), 384, 16),
        (_random("dinov2_vits14_focus", block=1, input_size=[28, 42]), 384, 14),
        (_random("timm", model="test_vit.r160_in1k"), 64, 16),
        (_random("timm", model="test_resnet.r160_in1k"), 96, 32),
        (_random("maskclip", model="ViT-S-16-alt", pretrained=None), 256, 16),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_every_network_has_the_grid_of_its_stride_whole_and_in_tiles(
    settings: dict, channels: int, stride: int
) -> None:
    settings = {"input_size": 2 * stride, **settings}
    images = torch.rand(1, 3, 40, 60) * 2 - 1
    whole = make_features(**settings)
    maps = whole.extract(images)
    assert (whole.channels, whole.stride) == (channels, stride)
    assert maps.shape == (1, channels, 2, 3)
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()
    assert torch.equal(make_features(**settings).extract(images), maps)
    other = make_features(**{**settings, "seed": 1})
    assert not torch.allclose(other.extract(images), maps)
    tiles = {**settings, "mode": "tiles", "tile_size": 2 * stride}
    tiled = make_features(**tiles)
    assert (tiled.channels, tiled.stride) == (channels, stride)
    assert tiled.extract(images).shape == maps.shape


def test_the_defaults_are_the_published_networks() -> None:
    with pytest.raises(
        UserError, match=r"^vit_small_patch16_224.dino: .*not in the cache.*weights"
    ):
        _offline("dino")
    with pytest.raises(UserError, match=r"^vit_small_patch14_dinov2.lvd142m: "):
        _offline("dinov2")
    with pytest.raises(UserError, match=r"^vit_small_patch16_224.augreg_in21k_ft_in1k: "):
        _offline("vit")
    with pytest.raises(UserError, match=r"^resnet50.tv_in1k: "):
        _offline("resnet")
    with pytest.raises(UserError, match=r"^ViT-B-16 openai: open_clip_model.safetensors"):
        _offline("maskclip")
    with pytest.raises(UserError, match=r"^ViT-B-16 openai: open_clip_model.safetensors"):
        _offline("clip")


def _offline(name: str) -> None:
    make_features(name=name)


@pytest.fixture(autouse=True)
def empty_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "timm"}, "lacks the setting 'model'"),
        (
            {"name": "rgb", "mode": "tile"},
            "mode is 'tile': it must be 'whole', 'tiles' or 'squares'",
        ),
        ({"name": "rgb", "tile_size": 32}, "only with `mode: tiles`"),
        ({"name": "dino", "seed": 3}, "only with `weights: random`"),
        ({"name": "dino", "weights": "/nowhere/dino.pth"}, "/nowhere/dino.pth: no such"),
        ({"name": "dino", "weights": "absent"}, "'absent' is not in the registry"),
        (_random("dino", mode="tiles", input_size=112), "at least the tile_size 224"),
        (_random("dino", mode="tiles", tile_size=100), "multiples of 16"),
        ({"name": "maskclip", "dense": "clip"}, "has no setting 'dense'"),
        (_random("rgb"), "has no setting 'weights'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_features(**settings)


def test_weights_needed_are_the_registrys() -> None:
    named = {name: FEATURES.read({"name": name}) for name in FEATURES.names() if name != "timm"}
    own = {name: [name] for name in ("dinov2_vits14", "dinov2_vits14_focus")}
    own["upsampled"] = ["featup_maskclip_jbu"]
    assert {name: settings.models() for name, settings in named.items()} == {
        name: own.get(name, []) for name in named
    }
    for name, weights, models in (
        ("dinov2_vits14_focus", "random", []),
        ("dinov2_vits14_focus", "~/dinov2.onnx", []),
        ("dino", "dino_vits16", ["dino_vits16"]),
    ):
        assert FEATURES.read({"name": name, "weights": weights}).models() == models


def test_upsampling_keeps_the_range_and_hits_cell_centres() -> None:
    maps = torch.tensor([[[0.0, 1.0], [0.5, 0.25]], [[2.0, 2.0], [2.0, 2.0]]])
    up = upsample_bilinear(maps, (6, 6))
    assert up.shape == (2, 6, 6)
    torch.testing.assert_close(up[:, 1::3, 1::3], maps)  # centre pixels of the 3 x 3 cells
    assert up.min() >= 0
    assert up.max() <= 2
    assert upsample_bilinear(maps, (2, 2)) is maps
