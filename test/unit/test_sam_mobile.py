"""MobileSAM's automatic masks with the published weights; skipped where they are not fetched."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.segmentation.anything import AutomaticSegmenter
from anomaly_detector_ros.segmentation.masks import RULES
from anomaly_detector_ros.segmentation.mobile_sam import (
    MobileSam,
    MobileSamPredictor,
    mobile_sam_generator,
)
from anomaly_detector_ros.weights.loading import Loader
from anomaly_detector_ros.weights.registry import Registry


@pytest.fixture(scope="module")
def segmenter() -> AutomaticSegmenter:
    settings = MobileSam(mode="automatic", points_per_side=4, mask_rule="smaller_wins")
    try:
        made = settings.build(Loader(Registry.default(), torch.device("cpu")))
    except UserError as error:
        pytest.skip(f"weights absent: {error}")
    assert isinstance(made, AutomaticSegmenter)
    return made


@pytest.fixture(scope="module")
def predictor(segmenter: AutomaticSegmenter) -> MobileSamPredictor:
    return segmenter.generator.predictor._predictor


@pytest.fixture(scope="module")
def scene() -> tuple[np.ndarray, list[np.ndarray]]:
    """A wall with a window and a disc, on a textured ground; and their masks."""
    rng = np.random.default_rng(0)
    ground = rng.normal((90, 120, 70), 12, (200, 320, 3))
    image = cv2.GaussianBlur(np.clip(ground, 0, 255).astype(np.uint8), (0, 0), 1.5)
    masks = np.zeros((3, 200, 320), np.uint8)
    # Of the 4x4 points four lie on the wall, one of them on the window, and one on the disc.
    cv2.rectangle(masks[0], (20, 50), (180, 180), 1, -1)
    cv2.rectangle(masks[1], (90, 95), (150, 155), 1, -1)
    cv2.circle(masks[2], (275, 130), 35, 1, -1)
    for mask, colour in zip(masks, [(150, 60, 50), (20, 20, 20), (30, 60, 230)], strict=True):
        image[mask > 0] = colour
    return image, list(masks.astype(bool))


@pytest.fixture(scope="module")
def found(
    segmenter: AutomaticSegmenter, scene: tuple[np.ndarray, list[np.ndarray]]
) -> list[np.ndarray]:
    return segmenter.masks(scene[0])


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_each_drawn_object_is_found_once(
    found: list[np.ndarray], scene: tuple[np.ndarray, list[np.ndarray]]
) -> None:
    # Three points lie on the wall and nine on the ground: their repeats are gone.
    ground = ~np.any(scene[1], axis=0)
    for drawn in (*scene[1], ground):
        assert sum(_iou(mask, drawn) > 0.85 for mask in found) == 1
    assert len(found) == 4


def test_segments_are_the_drawn_objects(
    segmenter: AutomaticSegmenter, scene: tuple[np.ndarray, list[np.ndarray]]
) -> None:
    image, (wall, window, disc) = scene
    segments = segmenter.segment(image, np.zeros((200, 320), np.float32))
    assert segments.dtype == np.int32
    for drawn, (y, x) in ((window, (125, 120)), (disc, (130, 275)), (wall & ~window, (75, 40))):
        assert segments[y, x] > 0
        assert _iou(segments == segments[y, x], drawn) > 0.8
    assert not segmenter.needs_map


def test_the_papers_rule_loses_the_window(found: list[np.ndarray]) -> None:
    ids = {name: rule(found, (200, 320), (0.001, 1.0)) for name, rule in RULES.items()}
    assert (ids["smaller_wins"].max(), ids["larger_first"].max()) == (4, 3)
    covered = [float((each > 0).mean()) for each in ids.values()]
    assert covered[0] == covered[1] > 0.9


def test_the_grid_gives_what_its_points_give(
    predictor: MobileSamPredictor, scene: tuple[np.ndarray, list[np.ndarray]]
) -> None:
    settings = MobileSam(mode="automatic", points_per_side=1, min_mask_region_area=0)
    (record,) = mobile_sam_generator(predictor, settings).generate(scene[0])
    alone = predictor.predict_points(np.array([(160.0, 100.0)]))
    np.testing.assert_array_equal(record["segmentation"], alone.masks[0])
    assert record["predicted_iou"] == pytest.approx(alone.quality[0], abs=1e-6)
    assert record["stability_score"] == pytest.approx(alone.stability[0], abs=1e-6)
    # The filter looks at that stability: just above it nothing is left.
    least = min(1.0, record["stability_score"] + 1e-4)
    strict = replace(settings, stability_score_thresh=least)
    generator = mobile_sam_generator(predictor, strict)
    assert not AutomaticSegmenter(generator, strict).segment(scene[0]).any()
