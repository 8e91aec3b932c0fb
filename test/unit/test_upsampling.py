from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from anomaly_detector_ros.distances.cosine import cosine_distance
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.features.base import FEATURES
from anomaly_detector_ros.features.featup import FeatUpUpsampler, JbuStack, UpsampledFeatures
from anomaly_detector_ros.features.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    normalise,
    resize,
)
from anomaly_detector_ros.features.upsampling import (
    UPSAMPLERS,
    Nearest,
    Upsampler,
    upsample_bilinear,
)
from anomaly_detector_ros.weights.loading import Loader
from anomaly_detector_ros.weights.registry import Registry

CHANNELS = 6
GRID = (3, 4)
EDITS = 2


@pytest.fixture(scope="module")
def stack() -> JbuStack:
    torch.manual_seed(0)
    return JbuStack(CHANNELS).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def checkpoint(stack: JbuStack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("featup") / "jbu.ckpt"
    state = {f"upsampler.{name}": value for name, value in stack.state_dict().items()}
    torch.save({"state_dict": state}, path)
    return path


@pytest.fixture
def nothing(tmp_path: Path) -> Registry:
    return Registry({}, tmp_path, tmp_path)


def _inputs(size: tuple[int, int] = (48, 64)) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    features = torch.randn(1 + EDITS, CHANNELS, *GRID)
    images = torch.rand(1 + EDITS, 3, *size) * 2 - 1
    return features[:1], features[1:], images[:1], images[1:]


def make_upsampler(settings: dict, registry: Registry) -> Upsampler:
    return UPSAMPLERS.read(settings).build(Loader(registry, torch.device("cpu")))


def test_bilinear_enlarges_the_distances_of_the_grid(nothing: Registry) -> None:
    original, edits, *images = _inputs()
    found = make_upsampler({"name": "bilinear"}, nothing).distance(
        original, edits, *images, (50, 70)
    )
    distances = cosine_distance(original.expand_as(edits), edits)
    assert found.shape == (EDITS, 50, 70)
    assert torch.equal(found, upsample_bilinear(distances, (50, 70)))


def test_none_repeats_the_distances_of_the_grid(nothing: Registry) -> None:
    original, edits, *images = _inputs()
    found = make_upsampler({"name": "none"}, nothing).distance(original, edits, *images, (12, 8))
    distances = cosine_distance(original.expand_as(edits), edits)
    assert torch.equal(found, distances.repeat_interleave(4, 1).repeat_interleave(2, 2))
    # Pixel centres decide: those at 1/10, 3/10, 5/10 of three cells lie in cells 0, 0, 1.
    row = torch.tensor([[[1.0, 2.0, 3.0]]])
    assert Nearest().enlarge(row, (1, 5)).tolist() == [[[1, 1, 2, 3, 3]]]


def _whole(stack: JbuStack, features: Tensor, image: Tensor, size: tuple[int, int]) -> Tensor:
    """All of an upsampled map at once, (1, C, 16 h, 16 w)."""
    guide = normalise(image[None], size, IMAGENET_MEAN, IMAGENET_STD)[0]
    upsampled = UpsampledFeatures(stack, features, guide, levels=4, fixup=True)
    window = upsampled.window(slice(0, upsampled.size[0]), slice(0, upsampled.size[1]))
    return window.permute(2, 0, 1)[None]


@pytest.mark.parametrize("tile", [16, 37, 128])
@pytest.mark.parametrize("size", [(48, 64), (40, 90)])
def test_featup_compares_the_upsampled_features(
    stack: JbuStack, tile: int, size: tuple[int, int]
) -> None:
    original, edits, image, edit_images = _inputs()
    found = FeatUpUpsampler(stack, tile=tile).distance(original, edits, image, edit_images, size)
    reference = _whole(stack, original[0], image[0], (48, 64))
    distances = torch.cat(
        [
            cosine_distance(reference, _whole(stack, features, edited, (48, 64)))
            for features, edited in zip(edits, edit_images, strict=True)
        ]
    )
    torch.testing.assert_close(found, resize(distances[:, None], size)[:, 0], rtol=0, atol=1e-5)
    assert found.min() >= 0
    assert found.max() <= 2


def test_upsampled_features_are_the_stacks_own_at_every_pixel(
    stack: JbuStack, checkpoint: Path, nothing: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    colours = JbuStack(3).eval().requires_grad_(False)
    state = {f"upsampler.{name}": value for name, value in colours.state_dict().items()}
    path = checkpoint.with_name("colours.ckpt")
    torch.save({"state_dict": state}, path)
    settings = {"name": "upsampled", "network": {"name": "rgb"}, "input_size": [3, 4]}
    made = FEATURES.read({**settings, "weights": str(path)})
    assert made.weights_used() == (str(path),)
    monkeypatch.setattr("anomaly_detector_ros.features.upsampled._TILE", 20)
    images = torch.rand(2, 3, 30, 40) * 2 - 1
    found = made.build(Loader(nothing, torch.device("cpu"))).extract(images)
    assert found.shape == (2, 3, 48, 64)
    small = resize(images, (3, 4))
    for each, features in zip(found, small, strict=True):
        guide = normalise(features[None], (3, 4), IMAGENET_MEAN, IMAGENET_STD)[0]
        whole = UpsampledFeatures(colours, features, guide, levels=4, fixup=True)
        expected = whole.window(slice(0, 48), slice(0, 64)).permute(2, 0, 1)
        torch.testing.assert_close(each, expected, rtol=0, atol=1e-5)


def test_upsampled_features_say_what_is_wrong_with_their_network() -> None:
    network = {"name": "rgb", "size": 3}
    with pytest.raises(UserError, match="features rgb has no setting 'size'"):
        FEATURES.read({"name": "upsampled", "network": network})
    with pytest.raises(UserError, match="upsampled features are of whole images"):
        FEATURES.read({"name": "upsampled", "network": {"name": "rgb"}, "mode": "tiles"})


def test_featup_is_guided_by_each_image(stack: JbuStack) -> None:
    original, _, image, edit_images = _inputs()
    upsampler = FeatUpUpsampler(stack)
    same = upsampler.distance(original, original, image, image, (48, 64))
    torch.testing.assert_close(same, torch.zeros(1, 48, 64), rtol=0, atol=1e-6)
    other = upsampler.distance(original, original, image, edit_images[:1], (48, 64))
    assert other.max() > 1e-4


def test_featup_smooths_an_image_that_is_smaller_than_the_map(stack: JbuStack) -> None:
    original, edits, image, edit_images = _inputs((20, 30))
    larger = [
        F.interpolate(images, size=(48, 64), mode="bilinear") for images in (image, edit_images)
    ]
    upsampler = FeatUpUpsampler(stack)
    found = upsampler.distance(original, edits, image, edit_images, (48, 64))
    expected = upsampler.distance(original, edits, *larger, (48, 64))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_featup_doubles_only_until_the_size_is_reached(stack: JbuStack) -> None:
    original, edits, *images = _inputs()
    upsampler = FeatUpUpsampler(stack, fixup=False)
    at_grid = upsampler.distance(original, edits, *images, GRID)
    expected = cosine_distance(original.expand_as(edits), edits)
    torch.testing.assert_close(at_grid, expected)
    doubled = [
        UpsampledFeatures(
            stack,
            features,
            normalise(image[None], (48, 64), IMAGENET_MEAN, IMAGENET_STD)[0],
            levels=1,
            fixup=False,
        ).window(slice(0, 6), slice(0, 8))
        for features, image in ((original[0], images[0][0]), (edits[0], images[1][0]))
    ]
    found = upsampler.distance(original, edits, *images, (6, 8))[0]
    torch.testing.assert_close(found, 1 - F.cosine_similarity(*doubled, dim=-1), rtol=0, atol=1e-5)


def test_featup_wants_a_grid_of_two_cells(stack: JbuStack) -> None:
    features, image = torch.randn(1, CHANNELS, 1, 4), torch.zeros(1, 3, 16, 64)
    with pytest.raises(UserError, match="grid of 1x4 features"):
        FeatUpUpsampler(stack).distance(features, features, image, image, (16, 64))


def test_featup_is_made_from_a_path(stack: JbuStack, checkpoint: Path, nothing: Registry) -> None:
    inputs = _inputs()
    settings = {"name": "featup", "weights": str(checkpoint), "tile": 32, "fixup": False}
    made = make_upsampler(settings, nothing).distance(*inputs, (48, 64))
    expected = FeatUpUpsampler(stack, fixup=False).distance(*inputs, (48, 64))
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)


def test_featup_is_made_from_the_registry(
    stack: JbuStack, checkpoint: Path, tmp_path: Path
) -> None:
    content = checkpoint.read_bytes()
    file = {
        "name": "any.ckpt",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "sources": [{"local": str(checkpoint)}],
    }
    (name,) = UPSAMPLERS.read({"name": "featup"}).models()
    entry = {"title": "JBU", "licence": "MIT", "project": "none", "files": [file]}
    (tmp_path / "registry.yaml").write_text(yaml.safe_dump({"models": {name: entry}}))
    registry = Registry.from_file(tmp_path / "registry.yaml", cache=tmp_path / "cache")
    with pytest.raises(UserError, match=name):
        make_upsampler({"name": "featup"}, registry)
    registry.fetch(name)
    inputs = _inputs()
    made = make_upsampler({"name": "featup"}, registry).distance(*inputs, (48, 64))
    assert torch.equal(made, FeatUpUpsampler(stack).distance(*inputs, (48, 64)))


def test_weights_needed() -> None:
    for settings, models in (
        ({"name": "bilinear"}, []),
        ({"name": "none"}, []),
        ({"name": "featup", "tile": 64}, ["featup_maskclip_jbu"]),
        ({"name": "featup", "weights": "some/file.ckpt"}, []),
    ):
        assert UPSAMPLERS.read(settings).models() == models


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("bicubic", {}, "unknown upsampler 'bicubic'.*: choose one of bilinear, featup, none"),
        ("bilinear", {"tile": 64}, "upsampler bilinear has no setting 'tile'"),
        ("featup", {"size": 3}, "has no setting 'size'.*: known are weights, fixup, tile"),
        ("featup", {"tile": 8}, "tile is 8: it must be greater than or equal to 16"),
        ("featup", {"tile": "big"}, "tile is 'big': it must be a valid integer"),
        ("featup", {"fixup": "perhaps"}, "fixup is 'perhaps': it must be a valid boolean"),
        ("featup", {"weights": "/no/such.ckpt"}, "/no/such.ckpt: no such weights file"),
    ],
)
def test_bad_settings_are_named(
    checkpoint: Path, nothing: Registry, name: str, settings: dict, message: str
) -> None:
    if name == "featup":
        settings = {"weights": str(checkpoint), **settings}
    with pytest.raises(UserError, match=message):
        make_upsampler({"name": name, **settings}, nothing)
    assert UPSAMPLERS.names() == ["bilinear", "featup", "none"]
