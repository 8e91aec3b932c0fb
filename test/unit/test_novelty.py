"""The novelty distance."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from anomaly_detector_ros.distances import novelty as novelty_module
from anomaly_detector_ros.distances.base import DISTANCES, Taught
from anomaly_detector_ros.distances.cosine import CosineDistance
from anomaly_detector_ros.distances.novelty import Novelty, NoveltyDistance, spread_out
from anomaly_detector_ros.errors import UserError


def features(seed: int, count: int) -> torch.Tensor:
    return torch.randn(count, 8, 5, 6, generator=torch.Generator().manual_seed(seed))


def nearest(memory: torch.Tensor, vectors: torch.Tensor, count: int) -> np.ndarray:
    """Mean cosine distance to the nearest memories of features (B, C, h, w): (B, h, w)."""
    index = NearestNeighbors(n_neighbors=count, metric="cosine").fit(memory.numpy())
    found, _ = index.kneighbors(vectors.permute(0, 2, 3, 1).flatten(0, 2).numpy())
    return found.mean(1).reshape(len(vectors), *vectors.shape[-2:])


@pytest.mark.parametrize("neighbours", [1, 3])
def test_it_is_the_novelty_of_the_image_and_the_distance_of_its_edits(neighbours: int) -> None:
    memory = torch.randn(40, 8, generator=torch.Generator().manual_seed(1)) * 3
    original, edits = features(2, 1), features(3, 2)
    settings = Novelty(neighbours=neighbours, memory_weight=2.0, edit_weight=0.25)
    distance = NoveltyDistance(memory, settings)
    maps = distance(original, edits)
    novelty = nearest(memory, original, neighbours)
    cosine = 1 - torch.cosine_similarity(original, edits, dim=1).numpy()
    expected = 2 * novelty + 0.25 * cosine
    np.testing.assert_allclose(maps.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(distance.anomaly(maps), expected.mean(0), atol=1e-5)
    np.testing.assert_allclose(distance.spread(maps), expected.std(0), atol=1e-5)
    alone = NoveltyDistance(memory, Novelty(neighbours=neighbours, edit_weight=0))
    np.testing.assert_allclose(alone(original, edits).numpy(), novelty, atol=1e-5)
    paper = NoveltyDistance(memory, Novelty(memory_weight=0, edit_weight=1))
    assert torch.equal(paper(original, edits), CosineDistance()(original, edits))


def test_edits_are_as_strong_as_a_place_is_new_to_the_memory() -> None:
    """Novelties 1 - cos 60, 45 and 30 degrees among places that the memory knows."""
    angles = torch.zeros(7, 9)
    angles[3, 1], angles[3, 4], angles[3, 7] = 60, 45, 30
    radians = angles.deg2rad()
    vectors = torch.stack([radians.cos(), radians.sin()])[None]
    settings = Novelty(edit_from=0.1, edit_to=0.4, neighbours=1)
    assert settings.guides_edits
    assert not Novelty().guides_edits
    strength = NoveltyDistance(torch.tensor([[2.0, 0.0]]), settings).strength(vectors)[0]
    expected = torch.zeros(7, 9)
    expected[2:5, 0:3] = 1
    expected[2:5, 3:6] = (1 - 0.5**0.5 - 0.1) / 0.3
    expected[2:5, 6:9] = (1 - 0.75**0.5 - 0.1) / 0.3
    torch.testing.assert_close(strength, expected, atol=1e-5, rtol=0)


def test_the_level_of_a_frame_does_not_call_for_edits() -> None:
    dull = torch.full((1, 2, 4, 4), 0.5**0.5)  # all places 45 degrees off what is known
    known = torch.tensor([[1.0, 0.0]])
    keeps = NoveltyDistance(known, Novelty(edit_from=0.1, edit_to=0.4, frame_level=0))
    takes = NoveltyDistance(known, Novelty(edit_from=0.1, edit_to=0.4, frame_level=1))
    assert (keeps.strength(dull) > 0.6).all()
    assert (takes.strength(dull) == 0).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory": 0},
        {"memory": 2.5},
        {"candidates": 0},
        {"lights": -1},
        {"neighbours": 0},
        {"edit_weight": -1},
        {"edit_weight": math.nan},
        {"frame_level": 1.5},
        {"memory_weight": -1},
        {"edit_from": 3},
        {"edit_to": math.inf},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    assert Novelty().memory == 4000
    with pytest.raises(UserError, match=next(iter(wrong))):
        DISTANCES.read({"name": "novelty", **wrong})


def test_a_memory_is_kept_in_bytes_that_hardly_move_a_distance() -> None:
    memory = torch.randn(500, 384, generator=torch.Generator().manual_seed(0)) * 7
    memory[0] = 0  # such as a black image's colours
    whole = NoveltyDistance(memory, Novelty(edit_weight=0))
    kept = whole.tensors()
    assert kept["memory"].dtype == torch.int8
    vectors = torch.randn(1, 384, 8, 8, generator=torch.Generator().manual_seed(1))
    read = Novelty(edit_weight=0).build(kept)
    torch.testing.assert_close(read(vectors, vectors), whole(vectors, vectors), atol=1e-3, rtol=0)


def test_rare_things_are_remembered() -> None:
    generator = torch.Generator().manual_seed(0)
    common = torch.tensor([1.0, 0, 0, 0]) + 0.01 * torch.randn(500, 4, generator=generator)
    rare = torch.eye(4)[1:] * 3
    drawn = torch.cat([common[:300], rare, common[300:]])
    kept = spread_out(drawn, 20)
    assert len(kept) == 20
    for vector in rare:
        assert (kept == vector).all(1).any()
    assert torch.equal(spread_out(drawn, 600), drawn)
    assert torch.equal(spread_out(drawn, 503), drawn)


def test_a_damaged_memory_is_refused() -> None:
    good = NoveltyDistance(torch.eye(3), Novelty())
    assert torch.equal(Novelty().build(good.tensors()).memory, good.memory)
    for wrong in (torch.full((2, 3), math.nan), torch.zeros(0, 3)):
        with pytest.raises(ValueError, match="memory"):
            Novelty().build({"memory": wrong})


def test_an_image_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where to edit it and how to score it are two questions about the same distances."""
    generator = torch.Generator().manual_seed(0)
    settings = Novelty(edit_from=0.1, edit_to=0.5)
    distance = NoveltyDistance(torch.randn(20, 8, generator=generator), settings)
    image, other, edit = torch.randn(3, 1, 8, 4, 5, generator=generator)
    calls, look_up = [], novelty_module.memory_distance

    def counted(*args: object) -> torch.Tensor:
        calls.append(args)
        return look_up(*args)

    monkeypatch.setattr(novelty_module, "memory_distance", counted)
    distance.strength(image)
    score = distance(image.clone(), edit)
    assert len(calls) == 1
    assert not torch.equal(distance(other, edit), score)
    assert len(calls) == 2
    distance.strength(image)  # of the next frame, even if it is the same
    assert len(calls) == 3
    # Nor is it looked up again for how much of it is of what was taught.
    taught = distance.taught([Taught(image[0].flatten(1).T)])
    calls.clear()
    taught.strength(image)
    taught(image, edit)
    shares = [taught.taught_share(each) for each in (image, other)]
    assert len(calls) == 2 + 2  # each in both memories
    for share, each in zip(shares, (image, other), strict=True):
        own, known = (
            look_up(each, m, settings.neighbours) for m in (taught.memory, taught.accepted)
        )
        assert share == pytest.approx(float((known < own).float().mean()))
    assert shares[0] > shares[1]
    # What is taught meanwhile counts at once.
    lesson = Taught(other[0].flatten(1).T, shown=True)
    assert (distance.taught([lesson]).strength(other) == 0).all()
