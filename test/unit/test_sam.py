"""The official Segment Anything classes with a tiny network of random weights."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import segment_anything
import torch
import yaml
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    TwoWayTransformer,
)
from segment_anything.modeling import Sam as Network

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.segmentation.anything import AutomaticSegmenter, PromptedSegmenter
from anomaly_detector_ros.segmentation.base import SEGMENTERS, Segmenter
from anomaly_detector_ros.segmentation.masks import RULES
from anomaly_detector_ros.segmentation.sam import Sam, SamPointPredictor, load_sam, sam_generator
from anomaly_detector_ros.weights.loading import Loader
from anomaly_detector_ros.weights.registry import Registry

# A random network rates its masks anyhow.
EVERY_MASK = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}


def _tiny_sam(checkpoint: None = None) -> Network:
    """Segment Anything's parts at 64 pixels and 32 channels."""
    width, side, patch = 32, 64, 16
    grid = (side // patch, side // patch)
    encoder = ImageEncoderViT(
        img_size=side, patch_size=patch, embed_dim=width, depth=1, num_heads=2, out_chans=width
    )
    prompts = PromptEncoder(
        embed_dim=width,
        image_embedding_size=grid,
        input_image_size=(side, side),
        mask_in_chans=16,
    )
    transformer = TwoWayTransformer(depth=2, embedding_dim=width, num_heads=4, mlp_dim=64)
    decoder = MaskDecoder(transformer_dim=width, transformer=transformer, iou_head_hidden_dim=32)
    # Unlike a trained network's, the logits of a random one hardly leave 0.
    for network in decoder.output_hypernetworks_mlps:
        torch.nn.init.normal_(network.layers[-1].weight, std=20.0)
    return Network(encoder, prompts, decoder).eval()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model of the package is the tiny one."""
    for model in ("vit_h", "vit_l", "vit_b"):
        monkeypatch.setitem(segment_anything.sam_model_registry, model, _tiny_sam)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (6, 10, 3), dtype=np.uint8)
    return cv2.resize(noise, (100, 60), interpolation=cv2.INTER_CUBIC)


def _seeded(mask_threshold: float = 0.0) -> Network:
    torch.manual_seed(0)
    sam = _tiny_sam()
    sam.mask_threshold = mask_threshold
    return sam


def _spots() -> Network:
    """A network whose masks are so small that several differ: cut at 0 they fill the image."""
    return _seeded(mask_threshold=9.0)


def make_segmenter(settings: dict[str, Any], registry: Registry) -> Segmenter | None:
    loader = Loader(registry, torch.device("cpu"))
    return SEGMENTERS.read({"name": "sam", **settings}).build(loader)


def test_automatic_masks_are_the_official_generators(image: np.ndarray) -> None:
    official = SamAutomaticMaskGenerator(
        _spots(),
        points_per_side=6,
        pred_iou_thresh=0.0,
        stability_score_thresh=0.0,
        min_mask_region_area=8,
    )
    masks = [record["segmentation"] for record in official.generate(image)]
    settings = Sam(points_per_side=6, min_mask_region_area=8, min_area_fraction=0.002, **EVERY_MASK)
    generator = sam_generator(_spots(), settings)
    found = {}
    for name, rule in RULES.items():
        segmenter = AutomaticSegmenter(generator, replace(settings, mask_rule=name))
        found[name] = segmenter.segment(image)
        np.testing.assert_array_equal(found[name], rule(masks, (60, 100), (0.002, 1.0)))
        assert found[name].dtype == np.int32
        assert not segmenter.needs_map
    assert found["smaller_wins"].max() > found["larger_first"].max() >= 1


def test_the_defaults_are_the_papers() -> None:
    generator = sam_generator(_seeded(), Sam())
    official = SamAutomaticMaskGenerator(_seeded(), min_mask_region_area=200)
    differing = {
        key
        for key, value in vars(official).items()
        if key not in ("predictor", "point_grids") and getattr(generator, key) != value
    }
    assert differing == {"points_per_batch"}
    np.testing.assert_array_equal(generator.point_grids[0], official.point_grids[0])
    assert Sam().min_area_fraction == 0.001


def test_regions_below_the_area_are_removed(image: np.ndarray) -> None:
    def small_regions(min_mask_region_area: int) -> int:
        settings = Sam(points_per_side=6, min_mask_region_area=min_mask_region_area, **EVERY_MASK)
        generator = sam_generator(_spots(), settings)
        count = 0
        for mask in AutomaticSegmenter(generator, settings).masks(image):
            _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
            regions = stats[1:, cv2.CC_STAT_AREA]
            # A mask of nothing but small regions keeps its largest.
            count += int((regions < 30).sum()) if len(regions) > 1 else 0
        return count

    assert small_regions(0) > 0
    assert small_regions(30) == 0


def test_filters_drop_masks(image: np.ndarray) -> None:
    def count(**settings: float) -> int:
        own = Sam(points_per_side=6, min_mask_region_area=0, **{**EVERY_MASK, **settings})
        return len(AutomaticSegmenter(sam_generator(_spots(), own), own).masks(image))

    assert 0 < count(stability_score_thresh=0.1) < count()
    assert count(pred_iou_thresh=1.0) == 0


def test_an_image_without_masks_has_no_segments(image: np.ndarray) -> None:
    settings = Sam(points_per_side=2, pred_iou_thresh=1.0)
    segmenter = AutomaticSegmenter(sam_generator(_seeded(), settings), settings)
    assert segmenter.segment(image).shape == (60, 100)
    assert not segmenter.segment(image).any()


def test_points_get_the_best_rated_of_three_masks(image: np.ndarray) -> None:
    predictor = SamPointPredictor(_seeded())
    with pytest.raises(RuntimeError, match="set_image"):
        predictor.predict_points(np.zeros((1, 2)))
    predictor.set_image(image)
    points = np.array([(20.0, 30.0), (80.0, 10.0)], np.float32)
    found = predictor.predict_points(points)
    assert found.masks.shape == (2, 60, 100)
    official = segment_anything.SamPredictor(_seeded())
    official.set_image(image)
    for index, point in enumerate(points):
        masks, quality, _ = official.predict(point[None], np.ones(1))
        np.testing.assert_array_equal(found.masks[index], masks[quality.argmax()])
        assert found.quality[index] == pytest.approx(quality.max())
    assert ((found.stability >= 0) & (found.stability <= 1)).all()
    assert predictor.predict_points(np.zeros((0, 2))).masks.shape == (0, 60, 100)


def test_prompted_segments_cover_the_image(tiny: None, image: np.ndarray) -> None:
    segmenter = make_segmenter(
        {
            "mode": "prompted",
            "model": "vit_b",
            "weights": "random",
            "seed": 0,
            "min_quality": -10.0,
            "min_stability": 0.0,
            "min_area_fraction": 0.0,
            "max_area_fraction": 1.0,
            "superpixels": 9,
        },
        Registry.default(),
    )
    assert isinstance(segmenter, PromptedSegmenter)
    assert segmenter.needs_map
    anomaly_map = np.zeros((60, 100), np.float32)
    anomaly_map[30, 20] = 1.0
    segments = segmenter.segment(image, anomaly_map)
    predictor = SamPointPredictor(_seeded())
    predictor.set_image(image)
    (mask,) = predictor.predict_points(np.array([(20.0, 30.0)])).masks
    np.testing.assert_array_equal(segments == 1, mask)
    assert segments.min() == 1


def test_random_weights_follow_their_seed(tiny: None, image: np.ndarray) -> None:
    def parameters(seed: int) -> torch.Tensor:
        settings = {"weights": "random", "seed": seed, "points_per_side": 2}
        segmenter = make_segmenter(settings, Registry.default())
        assert isinstance(segmenter, AutomaticSegmenter)
        return next(segmenter.generator.predictor.model.image_encoder.patch_embed.parameters())

    state = torch.get_rng_state()
    assert torch.equal(parameters(1), parameters(1))
    assert not torch.equal(parameters(1), parameters(2))
    assert torch.equal(torch.get_rng_state(), state)


def _saved(folder: Path) -> Path:
    path = folder / "sam.pth"
    torch.save(_seeded().state_dict(), path)
    return path


def test_weights_from_a_file_and_from_the_registry(
    tiny: None, image: np.ndarray, tmp_path: Path
) -> None:
    path = _saved(tmp_path)
    content = path.read_bytes()
    entry = {
        "title": "Tiny SAM",
        "licence": "Apache-2.0",
        "project": "none",
        "files": [
            {
                "name": path.name,
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                "sources": [{"local": str(path)}],
            }
        ],
    }
    (tmp_path / "registry.yaml").write_text(yaml.safe_dump({"models": {"sam_vit_l": entry}}))
    registry = Registry.from_file(tmp_path / "registry.yaml", cache=tmp_path / "cache")
    settings = {"model": "vit_l", "points_per_side": 4, "min_mask_region_area": 0, **EVERY_MASK}
    with pytest.raises(UserError, match="models fetch sam_vit_l"):
        make_segmenter(settings, registry)
    registry.fetch("sam_vit_l")
    from_registry = make_segmenter(settings, registry)
    from_file = make_segmenter({**settings, "weights": str(path)}, Registry.default())
    own = Sam(points_per_side=4, min_mask_region_area=0, **EVERY_MASK)
    want = AutomaticSegmenter(sam_generator(_seeded(), own), own).segment(image)
    assert want.any()
    for segmenter in (from_registry, from_file):
        assert segmenter is not None
        np.testing.assert_array_equal(segmenter.segment(image, np.zeros((60, 100))), want)


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


def test_files_that_are_no_weights_are_refused(
    tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_sam("vit_b", tmp_path / "absent.pth")
    for name, content in {
        "list": [1, 2],
        "other": {"weight": torch.zeros(1)},
        "trap": {"weight": _Trap()},
    }.items():
        torch.save(content, tmp_path / f"{name}.pth")
    (tmp_path / "noise.pth").write_bytes(b"not weights" * 20)
    (tmp_path / "empty.pth").touch()
    truncated = _saved(tmp_path).read_bytes()[:-2000]
    (tmp_path / "truncated.pth").write_bytes(truncated)
    for name in ("list", "other", "trap", "noise", "empty", "truncated"):
        with pytest.raises(UserError, match="not the weights of SAM vit_b") as caught:
            load_sam("vit_b", tmp_path / f"{name}.pth")
        assert "\n" not in str(caught.value)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"points_per_side": 0}, "points_per_side is 0"),
        ({"min_mask_region_area": -1}, "min_mask_region_area is -1"),
        ({"pred_iou_thresh": 1.5}, "pred_iou_thresh is 1.5: it must be less than or equal to 1"),
        ({"stability_score_thresh": -0.1}, "stability_score_thresh is -0.1"),
        ({"min_area_fraction": 2.0}, "min_area_fraction is 2.0"),
        ({"mask_rule": "none"}, "mask_rule is 'none'"),
        ({"mode": "prompted", "max_prompts": 0}, "max_prompts is 0"),
        ({"mode": "prompted", "mask_rule": "none"}, "mask_rule is 'none'"),
    ],
)
def test_settings_out_of_range(tiny: None, settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        make_segmenter({"weights": "random", **settings}, Registry.default())
