from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.segmentation.anything import anomaly_peaks
from anomaly_detector_ros.segmentation.base import SEGMENTERS, Segmenter
from anomaly_detector_ros.segmentation.mobile_sam import encoder_input
from anomaly_detector_ros.segmentation.mobile_sam_network import load_mobile_sam
from anomaly_detector_ros.segmentation.superpixels import Superpixels
from anomaly_detector_ros.weights.loading import Loader
from anomaly_detector_ros.weights.registry import Registry


def _hills(shape: tuple[int, int], hills: list[tuple[int, int, float]]) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    out = np.zeros(shape, np.float32)
    for cx, cy, height in hills:
        out = np.maximum(out, height * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 200.0))
    return out


# The second size is searched at a reduced resolution.
@pytest.mark.parametrize("factor", [1, 4])
def test_peaks_come_highest_first_and_in_pixels_of_the_map(factor: int) -> None:
    hills = [(40, 30, 0.5), (200, 100, 0.9), (120, 60, 0.7)]
    small = _hills((136, 256), hills)
    big = np.kron(small, np.ones((factor, factor), np.float32))
    points = anomaly_peaks(big)
    want = (np.array([(200, 100), (120, 60), (40, 30)]) + 0.5) * factor - 0.5
    np.testing.assert_allclose(points, want, atol=0.01)
    assert points.dtype == np.float32


def test_peaks_respect_count_floor_and_distance() -> None:
    scores = _hills((100, 200), [(30, 50, 1.0), (100, 50, 0.6), (170, 50, 0.15)])
    assert len(anomaly_peaks(scores, floor=0.1)) == 3
    assert len(anomaly_peaks(scores, floor=0.2)) == 2
    assert len(anomaly_peaks(scores, floor=0.1, max_prompts=1)) == 1
    # The hills are 70 pixels (0.35) apart.
    assert len(anomaly_peaks(scores, floor=0.1, min_distance=0.2)) == 3
    assert len(anomaly_peaks(scores, floor=0.1, min_distance=0.4)) == 1


def test_floor_is_relative_to_the_background_and_scale_free() -> None:
    scores = _hills((100, 200), [(30, 50, 1.0), (100, 50, 0.15)])
    for changed in (scores, scores * 0.01, scores + 5.0):
        assert len(anomaly_peaks(changed, floor=0.2)) == 1


def test_a_flat_map_has_no_peaks() -> None:
    assert anomaly_peaks(np.full((50, 60), 0.3, np.float32)).shape == (0, 2)


def test_peaks_at_the_border_are_kept() -> None:
    assert anomaly_peaks(_hills((100, 200), [(199, 0, 1.0)])).tolist() == [[199.0, 0.0]]


@pytest.mark.parametrize(("shape", "grid"), [((272, 512), (34, 64)), ((600, 300), (64, 32))])
def test_encoder_input_is_normalised_and_not_padded(
    shape: tuple[int, int], grid: tuple[int, int]
) -> None:
    image = np.full((*shape, 3), (255, 0, 128), np.uint8)
    pixels = encoder_input(image, grid)
    assert pixels.shape == (1, 3, 16 * grid[0], 16 * grid[1])
    assert pixels.dtype == np.float32
    want = [(255 - 123.675) / 58.395, -116.28 / 57.12, (128 - 103.53) / 57.375]
    np.testing.assert_allclose(pixels.reshape(3, -1).T, np.tile(want, (pixels[0, 0].size, 1)), 1e-5)


@pytest.mark.parametrize("shape", [(272, 512), (100, 90), (720, 1280)])
def test_superpixels_cover_the_image_and_follow_edges(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 40, np.uint8)
    y0, y1, x0, x1 = (
        int(f * n) for f, n in zip((0.3, 0.6, 0.25, 0.7), np.repeat(shape, 2), strict=True)
    )
    image[y0:y1, x0:x1] = (200, 180, 20)
    segments = Superpixels(count=200).segment(image)
    assert segments.dtype == np.int32
    assert segments.shape == shape
    ids = np.unique(segments)
    assert ids[0] == 1
    assert ids[-1] == len(ids)
    assert 60 <= len(ids) <= 400
    # Few pixels lie in a segment whose other pixels are mostly of the other colour.
    inside = np.zeros(shape)
    inside[y0:y1, x0:x1] = 1
    share = np.bincount(segments.ravel(), weights=inside.ravel()) / np.maximum(
        np.bincount(segments.ravel()), 1
    )
    assert np.abs(share[segments] - inside).mean() < 0.02


def test_superpixels_refuse_settings_out_of_range() -> None:
    for wrong in ({"count": 0}, {"compactness": 0}, {"max_side": 8}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            SEGMENTERS.read({"name": "superpixels", **wrong})


def make_segmenter(**settings: Any) -> Segmenter | None:
    return SEGMENTERS.read(settings).build(Loader(Registry.default(), torch.device("cpu")))


def test_make_segmenter_by_name() -> None:
    assert make_segmenter(name="none", uncovered="raw") is None
    superpixels = make_segmenter(name="superpixels", count=9)
    assert superpixels is not None
    assert not superpixels.needs_map
    segments = superpixels.segment(np.zeros((60, 60, 3), np.uint8), np.zeros((60, 60), np.float32))
    assert segments.min() == 1
    assert segments.max() <= 16
    with pytest.raises(UserError, match=r"unknown segmenter 'sam3'.*: choose one of mobile_sam"):
        make_segmenter(name="sam3")


@pytest.mark.parametrize(
    ("name", "settings", "complaint"),
    [
        ("superpixels", {"counts": 9}, "superpixels has no setting 'counts'"),
        ("superpixels", {"count": "many"}, "count is 'many': it must be a valid integer"),
        ("none", {"count": 9}, "none has no setting 'count'"),
        ("mobile_sam", {"mode": "grid"}, "mode is 'grid': it must be 'automatic' or 'prompted'"),
        ("mobile_sam", {"points_per_side": 8}, "mode prompted has no setting points_per_side"),
        ("mobile_sam", {"max_prompts": True}, "max_prompts is True: give a number"),
        ("sam", {"max_prompts": 8}, "sam: mode automatic has no setting max_prompts"),
        ("sam", {"points_per_side": 8.5}, "points_per_side is 8.5: it must be a valid integer"),
        ("sam", {"model": "vit_g"}, "model is 'vit_g': it must be 'vit_h', 'vit_l' or 'vit_b'"),
        ("sam", {"mode": "prompted", "min_quality": "high"}, "min_quality is 'high'"),
        ("sam", {"seed": 3}, "seed: only with 'weights: random'"),
    ],
)
def test_settings_are_strict(name: str, settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        make_segmenter(name=name, **settings)


def test_weights_needed_by_settings() -> None:
    for settings, models in (
        ({"name": "none", "uncovered": "raw"}, []),
        ({"name": "superpixels", "count": 9}, []),
        ({"name": "mobile_sam"}, ["mobile_sam"]),
        ({"name": "mobile_sam", "mode": "automatic"}, ["mobile_sam"]),
        ({"name": "sam"}, ["sam_vit_h"]),
        ({"name": "sam", "mode": "prompted", "model": "vit_b"}, ["sam_vit_b"]),
        ({"name": "sam", "model": "vit_b", "weights": "random"}, []),
    ):
        assert SEGMENTERS.read(settings).models() == models


def test_files_that_are_no_networks_are_refused(tmp_path: Path) -> None:
    (tmp_path / "noise.onnx").write_bytes(b"not a network" * 20)
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    node = helper.make_node("Identity", ["x"], ["y"])
    model = helper.make_model(
        helper.make_graph([node], "g", [value], [result]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(model, tmp_path / "other.onnx")
    good, noise = tmp_path / "other.onnx", tmp_path / "noise.onnx"
    with pytest.raises(UserError, match="not a usable ONNX file"):
        load_mobile_sam(noise, good)
    with pytest.raises(UserError, match="not a usable ONNX file"):
        load_mobile_sam(good, noise)
    with pytest.raises(UserError, match="not MobileSAM's"):
        load_mobile_sam(good, good)
    with pytest.raises(UserError, match="no such file"):
        load_mobile_sam(tmp_path / "absent.onnx", good)
