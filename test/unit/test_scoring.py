from __future__ import annotations

import numpy as np
import pytest
import torch

from anomaly_detector_ros.detection import frame_score
from anomaly_detector_ros.distances.cosine import cosine_distance
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.segmentation.base import SEGMENTERS, segment_average


def test_cosine_distance_of_known_angles() -> None:
    a = torch.tensor([[1.0, 0.0]]).expand(5, 2)[:, :, None, None]
    b = torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, 2.0], [-1.0, 0.0], [0.0, 0.0]])[..., None, None]
    got = cosine_distance(a, b)
    assert got.shape == (5, 1, 1)
    want = torch.tensor([0.0, 1 - 0.5**0.5, 1.0, 2.0, 1.0])
    torch.testing.assert_close(got.flatten(), want)


def test_cosine_distance_is_never_negative() -> None:
    a = torch.randn(1, 384, 40, 40, generator=torch.Generator().manual_seed(1)) * 100
    got = cosine_distance(a, a * 1.7)
    assert got.min() >= 0
    assert got.max() < 1e-5


def test_cosine_distance_computes_in_float32() -> None:
    a = torch.randn(1, 64, 4, 4, generator=torch.Generator().manual_seed(0))
    b = a + 0.01
    assert cosine_distance(a.half(), b.half()).dtype == torch.float32


def test_segment_average_equals_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((30, 40), dtype=np.float32)
    segments = rng.integers(0, 7, (30, 40)).astype(np.int32)
    segments[segments == 4] = 0  # ids may have gaps
    want = scores.copy()
    for index in range(1, 7):
        if (segments == index).any():
            want[segments == index] = scores[segments == index].mean(dtype=np.float64)
    got = segment_average(scores, segments, "raw")
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-6)
    zero = segment_average(scores, segments, "zero")
    np.testing.assert_allclose(zero, np.where(segments == 0, 0, want), rtol=1e-6)
    mean = segment_average(scores, segments, "mean")
    rest = scores[segments == 0].mean(dtype=np.float64)
    np.testing.assert_allclose(mean, np.where(segments == 0, rest, want), rtol=1e-6)


def test_segment_average_without_segments() -> None:
    scores = np.random.default_rng(1).random((5, 6), dtype=np.float32)
    none = np.zeros((5, 6), np.int32)
    np.testing.assert_array_equal(segment_average(scores, none, "raw"), scores)
    assert not segment_average(scores, none, "zero").any()


def test_segment_average_refuses_what_does_not_fit() -> None:
    scores = np.zeros((4, 4), np.float32)
    with pytest.raises(UserError, match="shape"):
        segment_average(scores, np.zeros((4, 5), np.int32), "raw")
    with pytest.raises(UserError, match="uncovered is 'nan': it must be 'raw', 'zero' or 'mean'"):
        SEGMENTERS.read({"name": "none", "uncovered": "nan"})


def test_frame_score_ignores_single_pixels_and_sees_small_objects() -> None:
    scores = np.full((272, 512), 0.1, np.float32)
    scores[5, 7] = 1.0
    assert frame_score(scores) == pytest.approx(0.1)
    scores[100:112, 200:212] = 0.8  # 144 pixels, just over a thousandth
    assert frame_score(scores) == pytest.approx(0.8)


def test_frame_score_of_small_and_empty_maps() -> None:
    assert frame_score(np.array([[0.2, 0.7]])) == pytest.approx(0.7)
    with pytest.raises(UserError, match="empty"):
        frame_score(np.zeros((0, 4)))
