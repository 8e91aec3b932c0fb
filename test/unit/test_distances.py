"""Cosine and whitened distances of features."""

from __future__ import annotations

import pytest
import torch
from support.calibration_data import CHANNELS, EDITS, gaussian_pairs, whitened

from anomaly_detector_ros.distances.base import DISTANCES
from anomaly_detector_ros.distances.cosine import (
    CosineDistance,
    SquaredCosineDistance,
    cosine_distance,
)
from anomaly_detector_ros.distances.l2 import SquaredDistance
from anomaly_detector_ros.distances.whitened import NominalDifferences, Whitened
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.features.featup import FeatUpUpsampler, JbuStack
from anomaly_detector_ros.features.upsampling import Bilinear, upsample_bilinear


def test_whitening_gives_gaussian_differences_unit_variance():
    distance = whitened(*(gaussian_pairs(seed) for seed in range(5)))
    original, edits = gaussian_pairs(9, (200, 200))
    found = (original - edits.mean(0, keepdim=True))[0].flatten(1) - distance.mean[:, None]
    components = distance.factor @ found
    torch.testing.assert_close(components @ components.T / 40000, torch.eye(4), atol=0.05, rtol=0)
    maps = distance(original, edits)
    assert maps.shape == (1 + EDITS, 200, 200)
    assert maps[0].square().mean() == pytest.approx(1, abs=0.03)
    torch.testing.assert_close(maps[0].flatten(), components.norm(dim=0) / 2)


def test_whitened_distance_is_mahalanobis_to_the_mean_of_the_edits():
    pairs = gaussian_pairs(0)
    distance = whitened(pairs, shrinkage=0.1)
    original, edits = gaussian_pairs(1)
    difference = (pairs[0] - pairs[1].mean(0, keepdim=True))[0].flatten(1).double()
    covariance = torch.cov(difference, correction=0)
    level = covariance.diagonal().mean()
    precision = torch.linalg.inv(0.9 * covariance + 0.1 * level * torch.eye(4))
    mean = difference.mean(1)
    maps = distance(original, edits)
    for given, edited in ((maps[0], edits.mean(0)), (maps[2], edits[1])):
        d = (original[0] - edited)[:, 7, 11].double() - mean
        assert float(given[7, 11]) == pytest.approx(float((d @ precision @ d / 4).sqrt()), rel=1e-5)
    assert torch.equal(distance.anomaly(maps), maps[0])
    torch.testing.assert_close(distance.spread(maps), maps[1:].std(0, correction=0))


def test_one_edit_has_no_spread():
    original, edits = gaussian_pairs(0, edits=1)
    for distance in (whitened((original, edits)), CosineDistance()):
        maps = distance(original, edits)
        assert maps.shape == (1, 40, 50)
        assert not distance.spread(maps).any()


def test_squares_are_taken_of_distances_and_of_differences_by_hand():
    # (3, 4) against (4, 3): cosine 24/25; against (-4, 3), a right angle: 0. Sums of squares 2, 50.
    original = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    edits = torch.tensor([[4.0, 3.0], [-4.0, 3.0]]).view(2, 2, 1, 1)
    squared = SquaredCosineDistance()
    anomaly = squared.anomaly(squared(original, edits))
    assert float(anomaly) == pytest.approx(((1 / 25) ** 2 + 1) / 2)
    l2 = SquaredDistance()
    maps = l2(original, edits)
    assert maps.flatten().tolist() == [2.0, 50.0]
    assert float(l2.anomaly(maps)) == 26.0
    black, white = -torch.ones(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    assert float(l2(black, white)) == 12.0


def test_cosine_distance_is_averaged_over_edits():
    original, edits = gaussian_pairs(0)
    distance = CosineDistance()
    maps = distance(original, edits)
    expected = torch.cat([cosine_distance(original, edit[None]) for edit in edits])
    assert torch.equal(maps, expected)
    assert torch.equal(distance.anomaly(maps), expected.mean(0))
    torch.testing.assert_close(distance.spread(maps), expected.std(0, correction=0))


def test_upsamplers_show_the_distance_every_cell_once():
    torch.manual_seed(0)
    original, edits = gaussian_pairs(0, (3, 4))
    images = torch.rand(1 + EDITS, 3, 48, 64) * 2 - 1
    arguments = (original, edits, images[:1], images[1:], (48, 64))
    distance = whitened(gaussian_pairs(1))
    grid = Bilinear().distance(*arguments, distance)
    assert torch.equal(grid, upsample_bilinear(distance(original, edits), (48, 64)))
    stack = JbuStack(CHANNELS).eval().requires_grad_(False)
    found = [FeatUpUpsampler(stack, tile=tile).distance(*arguments, distance) for tile in (128, 20)]
    assert found[0].shape == (1 + EDITS, 48, 64)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    learner = NominalDifferences()
    FeatUpUpsampler(stack, tile=20).distance(*arguments, learner)
    assert learner.count == 48 * 64
    learner = NominalDifferences()
    Bilinear().distance(*arguments, learner)
    assert learner.count == 12


def test_edits_that_change_nothing_cannot_be_whitened():
    original, _ = gaussian_pairs(0)
    with pytest.raises(UserError, match="do not differ"):
        whitened((original, original))
    with pytest.raises(UserError, match="no nominal image"):
        Whitened().fit([NominalDifferences().tensors()])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "l3"}, "unknown distance 'l3': choose one of cosine, "),
        ({"name": "cosine", "shrinkage": 0.1}, "distance cosine has no setting 'shrinkage'"),
        ({"name": "whitened", "shrinkage": 0}, "shrinkage is 0: it must be greater than 0"),
        ({"name": "whitened", "shrinkage": "much"}, "shrinkage is 'much': it must be a valid"),
    ],
)
def test_bad_distances_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        DISTANCES.read(settings)
