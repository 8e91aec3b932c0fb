"""The demo's pictures: objects rendered into scenes from a model."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from anomaly_detector_ros.demo.camera import FILE, SceneCamera
from anomaly_detector_ros.imaging.images import read_rgb
from anomaly_detector_ros.runtime.resources import share_dir

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

import draw_demo_scenes
from draw_demo_scenes import (
    CAMERA,
    FOCAL,
    HEIGHT,
    SCENES,
    WIDTH,
    Part,
    Scene,
    Thing,
    limb,
    render,
    sample_scene,
)

HORIZON = 90.0
GREY = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)


def ball() -> list[Part]:
    return [Part(limb((0, 0, 0.3), (0, 0, 0.31), 0.3, 0.3), (0.8, 0.8, 0.8))]


BALL = Scene(0, HORIZON, (Thing(ball, (0.0, 5.0), extent=0.3, height=0.62),), (90, 40), 0.6)


def test_the_mask_is_the_object_as_a_pinhole_camera_sees_it() -> None:
    _, mask = render(BALL, GREY)
    y = HORIZON + FOCAL * (CAMERA[2] - 0.305) / 5
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    disc = np.hypot(columns - WIDTH / 2, rows - y) < 0.3 * FOCAL / 5
    assert (mask & disc).sum() / (mask | disc).sum() > 0.92


def test_the_shadow_falls_away_from_the_sun_and_is_no_part_of_the_mask() -> None:
    def shade(azimuth: float) -> np.ndarray:
        picture, mask = render(replace(BALL, sun=(azimuth, 40)), GREY)
        edge = cv2.dilate(mask.astype(np.uint8), np.ones((7, 7))).astype(bool)
        darker = 120 - picture.astype(int).max(2)
        assert (darker[~edge] >= 0).all()  # outside of the object nothing is lighter
        darker[edge] = 0
        return darker

    from_right, from_left = shade(90), shade(-90)
    half = WIDTH // 2
    assert from_right[:, :half].sum() > 2 * from_right[:, half:].sum() > 0
    assert from_left[:, half:].sum() > 2 * from_left[:, :half].sum() > 0
    assert from_right.max() > 25


def test_a_scene_without_objects_stays_as_it_was_sampled() -> None:
    noise = np.random.default_rng(0).integers(0, 256, GREY.shape, np.uint8)
    picture, mask = render(Scene(0, HORIZON), noise)
    np.testing.assert_array_equal(picture, noise)
    assert not mask.any()


def test_scenes_follow_from_the_seed() -> None:
    model = share_dir("models") / "offroad_latent"
    first, again, other = (sample_scene(model, seed, steps=1) for seed in (3, 3, 4))
    assert first.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("index", range(len(SCENES)))
def test_pictures_and_masks_that_ship_are_of_these_scenes(
    index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draw_demo_scenes, "RAYS", 1)  # coarser edges in a fraction of the time
    folder, scene = share_dir("demo"), SCENES[index]
    picture = read_rgb(folder / "images" / f"scene_{index}.jpg")
    truth = cv2.imread(str(folder / "truth" / f"scene_{index}.png"), cv2.IMREAD_GRAYSCALE) > 0
    drawn, mask = render(scene, picture)
    assert picture.shape == (HEIGHT, WIDTH, 3)
    assert truth.any() == bool(scene.things)
    assert (truth & mask).sum() >= 0.85 * (truth | mask).sum()
    assert not np.concatenate([truth[0], truth[-1], truth[:, 0], truth[:, -1]]).any()
    if scene.things:  # rendered over itself the object keeps its looks
        assert np.abs(drawn[mask].astype(int) - picture[mask]).mean() < 25


def test_the_pictures_stay_small() -> None:
    files = [file for file in share_dir("demo").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 500_000


def test_the_camera_that_ships_is_that_of_the_scenes() -> None:
    camera = SceneCamera.load(share_dir("demo") / FILE)
    assert (camera.focal, camera.height) == (FOCAL, pytest.approx(CAMERA[2]))
    horizon = {f"scene_{index}": scene.horizon for index, scene in enumerate(SCENES)}
    assert camera.horizon == horizon
    assert camera.matrix("scene_3", WIDTH)[2:6] == [WIDTH / 2, 0.0, FOCAL, SCENES[3].horizon]
    assert camera.matrix("another", WIDTH) == []
