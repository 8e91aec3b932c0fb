"""The demo's pictures: objects drawn by code into scenes from a model."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

from draw_demo_scenes import HEIGHT, OBJECTS, PLACEMENTS, WIDTH, place, sample_scenes

GREY = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)


@pytest.mark.parametrize("name", list(OBJECTS))
def test_objects_stand_on_the_lower_edge_with_smooth_outlines(name: str) -> None:
    drawn = OBJECTS[name](120)
    assert drawn.shape == (120, 120, 4)
    assert 0 <= drawn.min() <= drawn.max() <= 1
    alpha = drawn[..., 3]
    assert 0.1 < alpha.mean() < 0.9
    assert alpha[-6:].max() > 0.9
    assert ((alpha > 0.05) & (alpha < 0.95)).sum() > 20
    assert drawn[alpha > 0.9][:, :3].std() > 0.05


@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda p: f"{p.name}-{p.x}")
def test_mask_covers_what_changed_but_for_the_shadow(placement: object) -> None:
    picture, mask = place(GREY, placement)  # type: ignore[arg-type]
    assert picture.shape == GREY.shape
    assert 0.002 < mask.mean() < 0.1
    change = np.abs(picture.astype(int) - 120).max(2)
    assert (change[mask] > 5).mean() > 0.8
    brighter = (picture.astype(int) - 120).max(2) > 3
    near = np.zeros_like(mask)  # the object's smooth edge
    rows, columns = np.nonzero(mask)
    near[rows.min() - 3 : rows.max() + 4, columns.min() - 3 : columns.max() + 4] = True
    assert not (brighter & ~near).any()
    assert (picture[:, :60] == 120).all()


def test_scenes_follow_from_the_seed(tiny_model: Path) -> None:
    first = sample_scenes(tiny_model, 2, seed=3, steps=2, redrawn_size=(24, 40))
    again = sample_scenes(tiny_model, 1, seed=4, steps=2, redrawn_size=(24, 40))
    assert first.shape == (2, HEIGHT, WIDTH, 3)
    assert first.dtype == np.uint8
    assert (first[0] != first[1]).any()
    np.testing.assert_array_equal(first[1], again[0])
