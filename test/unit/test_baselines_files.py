"""Baselines: sampling and files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.baseline_fits import SETTINGS, blobs, fitted, scores
from torch import Tensor

from anomaly_detector_ros.baselines.base import BASELINES as REGISTRY
from anomaly_detector_ros.baselines.base import KIND, FittedBaseline
from anomaly_detector_ros.baselines.nearest import Nearest
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.features.rgb import RgbFeatures
from anomaly_detector_ros.features.sampling import sample_features
from anomaly_detector_ros.runtime.fitted_file import header_key
from anomaly_detector_ros.runtime.tensors import to_tensor

BASELINES = REGISTRY.names()


@pytest.fixture(scope="module")
def all_fitted() -> dict[str, FittedBaseline]:
    vectors = blobs(500, 16)
    return {name: fitted(name, vectors) for name in BASELINES}


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASELINES)
def test_loaded_baseline_scores_alike(name: str, all_fitted: dict, tmp_path: Path) -> None:
    baseline = all_fitted[name]
    file = tmp_path / "baseline.safetensors"
    baseline.save(file)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    loaded = FittedBaseline.load(file)
    assert loaded.method == baseline.method
    test = torch.cat([blobs(50, 16, seed=1), 3 * blobs(50, 16, seed=2)])
    np.testing.assert_array_equal(scores(loaded, test), scores(baseline, test))


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-50] ^= 1
    file.write_bytes(bytes(data))


def _other_tensors(file: Path) -> None:
    save_file({"weight": torch.zeros(3)}, file)


def _picture(file: Path) -> None:
    file.write_bytes(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes())


def _other_header(file: Path) -> None:
    save_file({"weight": torch.zeros(3)}, file, {header_key(KIND): '{"baseline": "gmm"}'})


def _empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_truncate, "is no baseline"),
        (_flip, "altered"),
        (_other_tensors, "is no baseline"),
        (_picture, "is no baseline"),
        (_other_header, "is no baseline"),
        (_empty, "is no baseline"),
        (Path.unlink, "cannot read"),
    ],
)
def test_spoilt_file_is_refused(
    spoil: Callable[[Path], None], told: str, all_fitted: dict, tmp_path: Path
) -> None:
    file = tmp_path / "baseline.safetensors"
    all_fitted["gmm"].save(file)
    spoil(file)
    with pytest.raises(UserError, match=told) as caught:
        FittedBaseline.load(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


# --- sampling -------------------------------------------------------------------------------------


class Positions:
    """Features that tell which image and position they come from."""

    channels = 2

    def __init__(self) -> None:
        self.runs = 0

    def extract(self, images: Tensor) -> Tensor:
        self.runs += 1
        _, _, height, width = images.shape
        position = torch.arange(height * width, dtype=torch.float32).reshape(1, 1, height, width)
        return torch.cat([torch.full_like(position, self.runs), position], dim=1)


def test_sample_is_uniform_without_repeats() -> None:
    sizes = [(10, 10), (20, 20), (10, 20), (30, 10)] * 5
    images = [np.zeros((*size, 3), np.uint8) for size in sizes]
    extractor = Positions()
    drawn = sample_features(extractor, iter(images), count=2500, seed=0)
    assert drawn.shape == (2500, 2)
    assert extractor.runs == len(images)
    assert len(drawn.unique(dim=0)) == 2500
    pixels = np.array([height * width for height, width in sizes])
    expected = 2500 * pixels / pixels.sum()
    counts = np.bincount(drawn[:, 0].int().numpy(), minlength=21)[1:]
    # Half of the 5000 vectors are drawn: the standard deviation is at most 10.
    assert np.abs(counts - expected).max() < 40
    where = drawn[:, 1] / torch.from_numpy(pixels)[drawn[:, 0].long() - 1]
    assert float(where.mean()) == pytest.approx(0.5, abs=0.03)


def test_sample_depends_on_the_seed_alone() -> None:
    images = [np.zeros((10, 12, 3), np.uint8)] * 6
    first, again, other = (sample_features(Positions(), images, 100, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_sample_takes_all_there_is_and_tells_progress() -> None:
    done: list[int] = []
    images = [np.zeros((3, 4, 3), np.uint8)] * 2
    drawn = sample_features(Positions(), images, 1000, progress=done.append)
    assert len(drawn.unique(dim=0)) == len(drawn) == 24
    assert done == [1, 2]
    with pytest.raises(UserError, match="no images"):
        sample_features(Positions(), [])


# --- images ---------------------------------------------------------------------------------------


def terrain(seed: int) -> np.ndarray:
    """Green below, blue above, with noise."""
    rng = np.random.default_rng(seed)
    image = np.empty((24, 36, 3), np.float64)
    image[:10], image[10:] = (110, 160, 220), (60, 120, 50)
    return np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", BASELINES)
def test_saved_baseline_finds_what_is_strange(name: str, tmp_path: Path) -> None:
    extractor = RgbFeatures(input_size=(32, 48))
    vectors = sample_features(extractor, [terrain(seed) for seed in range(4)], 3000, seed=1)
    output = tmp_path / "baseline.safetensors"
    REGISTRY.read({**SETTINGS[name], "name": name}).fit(vectors, 1).save(output)
    image = terrain(9)
    image[14:20, 10:20] = (230, 60, 30)
    found = FittedBaseline.load(output).score_image(extractor, image)
    assert found.shape == (24, 36)
    assert found.dtype == np.float32
    assert found[15:19, 12:18].min() > np.quantile(found[:, 24:], 0.95)


def test_other_features_are_refused(all_fitted: dict) -> None:
    with pytest.raises(UserError, match=r"\(1, 3, .*it was fitted on \(B, 16, h, w\)"):
        all_fitted["gmm"].score_image(RgbFeatures(), terrain(0))


def test_scores_are_enlarged_to_the_image() -> None:
    images = [terrain(seed) for seed in range(3)]
    extractor = RgbFeatures(input_size=(6, 9))
    baseline = Nearest(metric="l2").fit(sample_features(extractor, images))
    found = baseline.score_image(extractor, images[0])
    small = baseline.score(extractor.extract(to_tensor(images[0][None])))[0].numpy()
    expected = cv2.resize(small, (36, 24), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_reading_fails_with_the_file_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken\.png"):
        sample_features(RgbFeatures(), [broken])
