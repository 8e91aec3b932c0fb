"""An edit as the memory of its own image."""

from __future__ import annotations

import torch

from anomaly_detector_ros.distances.base import DISTANCES
from anomaly_detector_ros.distances.nearest_edit import NearestEdit

GENERATOR = torch.Generator().manual_seed(0)
IMAGE = torch.randn(1, 16, 4, 6, generator=GENERATOR)


def shuffled(features: torch.Tensor) -> torch.Tensor:
    places = torch.randperm(24, generator=GENERATOR)
    return features.flatten(2)[..., places].unflatten(2, (4, 6))


def test_what_only_moved_is_no_anomaly() -> None:
    maps = NearestEdit(neighbours=1)(IMAGE, shuffled(IMAGE))
    assert maps.shape == (1, 4, 6)
    assert maps.abs().max() < 1e-6


def test_what_the_edit_took_away_stands_out() -> None:
    """One place points along a channel that no other place uses; the edit has grass there."""
    image = IMAGE.clone()
    image[:, 0] = 0
    edit = shuffled(image)
    image[0, :, 1, 2] = torch.eye(16)[0]
    found = NearestEdit(neighbours=1)(image, edit)[0]
    assert found[1, 2] == 1
    assert found.flatten().topk(2).values[1] < 1e-6


def test_the_mean_of_the_nearest_by_hand() -> None:
    image = torch.tensor([[1.0, 0.0]]).reshape(1, 2, 1, 1)
    edit = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]).T.reshape(1, 2, 1, 3)
    for neighbours, expected in ((1, 0.0), (2, 0.5), (3, 1.0), (9, 1.0)):
        found = NearestEdit(neighbours=neighbours)(image, edit)
        assert found.shape == (1, 1, 1)
        assert torch.allclose(found, torch.tensor(expected))


def test_the_nearest_edit_counts() -> None:
    distance = DISTANCES.read({"name": "nearest_edit", "neighbours": 1}).build({})
    edits = torch.cat([torch.randn(1, 16, 4, 6, generator=GENERATOR), shuffled(IMAGE)])
    maps = distance(IMAGE, edits)
    assert maps[0].min() > 0.05
    assert distance.anomaly(maps).max() < 1e-6
