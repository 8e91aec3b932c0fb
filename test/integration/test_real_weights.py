"""The analysis with the real published weights; skipped where they have not been fetched."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from anomaly_detector_ros.distances.cosine import cosine_distance
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.features.base import FEATURES
from anomaly_detector_ros.features.dinov2 import PATCH, DinoV2Features, DinoV2Focus
from anomaly_detector_ros.features.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from anomaly_detector_ros.features.upsampling import upsample_bilinear
from anomaly_detector_ros.segmentation.anything import PromptedSegmenter
from anomaly_detector_ros.segmentation.mobile_sam import (
    MobileSam,
    MobileSamPredictor,
    encoder_input,
)
from anomaly_detector_ros.segmentation.mobile_sam_network import load_mobile_sam
from anomaly_detector_ros.segmentation.superpixels import Superpixels


def _files(name: str) -> list[Path]:
    from anomaly_detector_ros.weights.registry import Registry

    registry = Registry.default()
    try:
        folder = registry.path(name)
    except UserError as error:
        pytest.skip(f"weights absent: {error}")
    return [folder / file.name for file in registry.entry(name).files]


@pytest.fixture(scope="module")
def focus_onnx() -> Path:
    return _files("dinov2_vits14_focus")[0]


@pytest.fixture(scope="module")
def mobile_sam_files() -> list[Path]:
    return _files("mobile_sam")


@pytest.fixture(scope="module")
def segmenter(mobile_sam_files: list[Path]) -> PromptedSegmenter:
    from anomaly_detector_ros.weights.loading import Loader
    from anomaly_detector_ros.weights.registry import Registry

    made = MobileSam().build(Loader(Registry.default(), torch.device("cpu")))
    assert isinstance(made, PromptedSegmenter)
    return made


@pytest.fixture(scope="module")
def predictor(mobile_sam_files: list[Path]) -> MobileSamPredictor:
    return MobileSamPredictor(load_mobile_sam(*mobile_sam_files))


def _graph_tokens(path: Path, pixels: np.ndarray, tensors: list[str]) -> list[np.ndarray]:
    """Inner tensors of the published graph, for normalised pixels (1, 3, H, W)."""
    import onnx
    import onnxruntime

    model = onnx.load(str(path))
    graph = model.graph
    for dim, size in zip(
        graph.input[0].type.tensor_type.shape.dim[2:], pixels.shape[2:], strict=True
    ):
        dim.dim_value = size
    # The shapes recorded for 224x224 would contradict the larger input.
    del graph.value_info[:]
    del graph.output[:]
    graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in tensors
    )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(tensors, {graph.input[0].name: pixels})


# 518 is the size of the position grid, 224 (the graph's declared input) resamples it.
@pytest.mark.parametrize("size", [(518, 518), (224, 224)])
def test_features_equal_the_graphs_own_tensors(focus_onnx: Path, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, 3, size[0] // 8, size[1] // 8, generator=generator)
    images = torch.nn.functional.interpolate(images, size=size, mode="bicubic").clamp(0, 1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    blocks = (1, 9, 12)
    expected = _graph_tokens(
        focus_onnx,
        ((images - mean) / std).numpy(),
        [f"/backbone/encoder/layer.{block - 1}/Add_1_output_0" for block in blocks],
    )
    for block, tokens in zip(blocks, expected, strict=True):
        extractor = DinoV2Features(DinoV2Focus(block=block), focus_onnx, input_size=size)
        got = extractor.extract(images * 2 - 1)
        grid = (size[0] // PATCH, size[1] // PATCH)
        want = torch.from_numpy(tokens)[:, 1:].transpose(1, 2).unflatten(2, grid)
        error = ((got - want).abs().max() / want.abs().max()).item()
        print(f"{size} block {block}: max abs difference / max abs = {error:.2e}")
        assert error < 1e-4


def test_make_features_reads_the_registrys_file(focus_onnx: Path) -> None:
    from anomaly_detector_ros.weights.loading import Loader
    from anomaly_detector_ros.weights.registry import Registry

    settings = {"name": "dinov2_vits14_focus", "block": 3, "input_size": [70, 112]}
    made = FEATURES.read(settings).build(Loader(Registry.default(), torch.device("cpu")))
    images = torch.rand(2, 3, 60, 80, generator=torch.Generator().manual_seed(0)) * 2 - 1
    want = DinoV2Features(DinoV2Focus(block=3), focus_onnx, input_size=(70, 112)).extract(images)
    assert torch.equal(made.extract(images), want)


def test_a_local_change_shows_where_it_is(focus_onnx: Path) -> None:
    extractor = DinoV2Features(DinoV2Focus(block=9), focus_onnx)
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.random((272, 512, 3), dtype=np.float32), (0, 0), 9)
    image = (image - image.min()) / (image.max() - image.min())
    other = image.copy()
    cv2.rectangle(other, (300, 100), (370, 180), (0.9, 0.1, 0.1), -1)
    pair = torch.from_numpy(np.stack([image, other])).permute(0, 3, 1, 2) * 2 - 1
    maps = extractor.extract(pair)
    distance = upsample_bilinear(cosine_distance(maps[:1], maps[1:]), (272, 512))[0].numpy()
    changed = np.zeros((272, 512), bool)
    changed[100:180, 300:370] = True
    assert distance[changed].mean() > 4 * distance[~changed].mean()


def _scene(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image with two discs on a textured ground, the discs' centres (x, y) and masks."""
    rng = np.random.default_rng(0)
    ground = rng.normal((90, 120, 70), 12, (height, width, 3))
    image = cv2.GaussianBlur(np.clip(ground, 0, 255).astype(np.uint8), (0, 0), 1.5)
    centres = np.array([(width // 4, height // 3), (2 * width // 3, 2 * height // 3)])
    masks = np.zeros((2, height, width), np.uint8)
    for mask, centre, colour in zip(masks, centres, [(220, 40, 30), (30, 60, 230)], strict=True):
        cv2.circle(mask, tuple(map(int, centre)), min(height, width) // 8, 1, -1)
        image[mask > 0] = colour
    return image, centres.astype(np.float32), masks.astype(bool)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


# Landscape, portrait (padding on the other side), and larger than the encoder's 1024 pixels.
@pytest.mark.parametrize("shape", [(272, 512), (400, 250), (900, 1600)])
def test_masks_sit_on_the_prompted_objects(
    predictor: MobileSamPredictor, shape: tuple[int, int]
) -> None:
    image, centres, discs = _scene(*shape)
    predictor.set_image(image)
    found = predictor.predict_points(centres)
    assert found.masks.shape == (2, *shape)
    for mask, disc in zip(found.masks, discs, strict=True):
        assert _iou(mask, disc) > 0.9
    assert (found.quality > 0.8).all()
    assert (found.stability > 0.9).all()


def test_prompts_together_give_what_they_give_alone(predictor: MobileSamPredictor) -> None:
    image, _, _ = _scene(272, 512)
    predictor.set_image(image)
    # More than one run of the decoder takes.
    points = np.random.default_rng(3).uniform((0, 0), (511, 271), (11, 2))
    together = predictor.predict_points(points)
    for index, point in enumerate(points):
        alone = predictor.predict_points(point[None])
        # Rounding may flip pixels whose logit is 0 but for the sixth digit.
        assert (alone.masks[0] != together.masks[index]).mean() < 1e-3
        assert alone.quality[0] == pytest.approx(together.quality[index], abs=1e-4)
    assert predictor.predict_points(np.zeros((0, 2))).masks.shape == (0, 272, 512)


def test_the_corner_is_no_prompt(predictor: MobileSamPredictor) -> None:
    # The decoder's padding point lies at (0, 0); only its label keeps it from counting.
    image, centres, discs = _scene(272, 512)
    cv2.rectangle(image, (0, 0), (60, 40), (250, 250, 250), -1)
    predictor.set_image(image)
    found = predictor.predict_points(np.array([centres[0], (0, 0)]))
    assert _iou(found.masks[0], discs[0]) > 0.9
    assert not found.masks[0][:40, :60].any()
    assert found.masks[1][:40, :60].mean() > 0.9


def test_points_before_an_image_are_an_error(mobile_sam_files: list[Path]) -> None:
    predictor = MobileSamPredictor(load_mobile_sam(*mobile_sam_files))
    with pytest.raises(RuntimeError, match="set_image"):
        predictor.predict_points(np.zeros((1, 2)))


def test_mobile_sam_equals_the_published_graphs(mobile_sam_files: list[Path]) -> None:
    """In the one size that those take: a square picture, which they need not pad."""
    import onnxruntime

    encoder, decoder = (onnxruntime.InferenceSession(str(file)) for file in mobile_sam_files)
    predictor = MobileSamPredictor(load_mobile_sam(*mobile_sam_files))
    image, centres, _ = _scene(1024, 1024)
    embedding = encoder.run(None, {"input": encoder_input(image, (64, 64))})[0]
    given = {
        "image_embeddings": embedding,
        "point_coords": np.concatenate([centres[:1], np.zeros((1, 2), np.float32)])[None],
        "point_labels": np.array([[1.0, -1.0]], np.float32),
        "mask_input": np.zeros((1, 1, 256, 256), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array([1024, 1024], np.float32),
    }
    masks, quality = decoder.run(["masks", "iou_predictions"], given)
    predictor.set_image(image)
    found = predictor.predict_logits(centres[:1])
    assert np.abs(found[0] - masks[:, 0]).max() < 1e-3 * np.abs(masks).max()
    assert found[1] == pytest.approx(quality[0], abs=1e-5)


def test_segments_are_the_objects_under_the_peaks(segmenter: PromptedSegmenter) -> None:
    image, centres, discs = _scene(272, 512)
    anomaly_map = np.zeros((272, 512), np.float32)
    for x, y in centres.astype(int):
        anomaly_map[y, x] = 1.0
    anomaly_map = cv2.GaussianBlur(anomaly_map, (0, 0), 12)
    segments = segmenter.segment(image, anomaly_map)
    assert segments.dtype == np.int32
    assert segments.min() == 1  # superpixels cover the rest
    for (x, y), disc in zip(centres.astype(int), discs, strict=True):
        assert _iou(segments == segments[y, x], disc) > 0.9


def test_a_flat_map_leaves_only_superpixels(segmenter: PromptedSegmenter) -> None:
    image, _, _ = _scene(272, 512)
    flat = np.full((272, 512), 0.1, np.float32)
    expected = Superpixels(count=segmenter.settings.superpixels).segment(image)
    np.testing.assert_array_equal(segmenter.segment(image, flat), expected)


def test_a_real_object_is_cut_out(predictor: MobileSamPredictor, shared_data: Path) -> None:
    folder = shared_data / "ycor" / "test"
    image = cv2.imread(str(folder / "images" / "0432.jpg"))[..., ::-1]
    obstacle = cv2.imread(str(folder / "labels" / "0432.png"), cv2.IMREAD_GRAYSCALE) == 8
    inside = cv2.distanceTransform(obstacle.astype(np.uint8), cv2.DIST_L2, 3)
    y, x = np.unravel_index(inside.argmax(), inside.shape)
    predictor.set_image(np.ascontiguousarray(image))
    found = predictor.predict_points(np.array([[x, y]]))
    assert _iou(found.masks[0], obstacle) > 0.6
