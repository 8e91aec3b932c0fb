"""Which frames take the result of an earlier one."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from anomaly_detector_ros.imaging.skipping import FrameSkipper

HEIGHT, WIDTH = 360, 640


def scene(seed: int = 0) -> np.ndarray:
    """Smooth structure, as grass and sky."""
    coarse = np.random.default_rng(seed).integers(40, 200, (9, 16, 3), np.uint8)
    return cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)


def noisy(image: np.ndarray, seed: int) -> np.ndarray:
    """The same scene with a camera's noise, compressed."""
    noise = np.random.default_rng(seed).normal(0, 5, image.shape)
    picture = np.clip(image + noise, 0, 255).astype(np.uint8)
    return cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 80])[1], 1)


def remembering(image: np.ndarray) -> FrameSkipper[str]:
    skipper: FrameSkipper[str] = FrameSkipper()
    skipper.remember(image, "found")
    return skipper


def test_noise_is_no_change() -> None:
    image = scene()
    skipper = remembering(noisy(image, 0))
    assert [skipper.recall(noisy(image, seed), 4.0) for seed in range(1, 5)] == ["found"] * 4


@pytest.mark.parametrize(("x", "y"), [(0, 0), (317, 151), (WIDTH - 10, HEIGHT - 10)])
def test_a_small_object_is_a_change_wherever_it_appears(x: int, y: int) -> None:
    """10x10 of 230,400 pixels: 0.04% of the image, which its mean change would not show."""
    image = scene()
    changed = image.copy()
    changed[y : y + 10, x : x + 10] ^= 128
    assert np.abs(changed.astype(int) - image).mean() < 0.1
    assert remembering(image).recall(changed, 4.0) is None


def test_a_moving_camera_is_a_change() -> None:
    image = scene()
    assert remembering(image).recall(np.roll(image, 8, axis=1), 4.0) is None


def test_slow_changes_add_up() -> None:
    image = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
    skipper = remembering(image)
    recalled = [skipper.recall(image + np.uint8(step), 4.5) for step in range(1, 8)]
    assert recalled == ["found"] * 4 + [None] * 3


def test_no_more_than_so_many_in_a_row() -> None:
    image = scene()
    skipper = remembering(image)
    assert [skipper.recall(image, 1.0, 2) for _ in range(4)] == ["found", "found", None, None]
    skipper.remember(image, "found again")
    assert skipper.recall(image, 1.0, 2) == "found again"


def test_nothing_is_recalled() -> None:
    image = scene()
    assert FrameSkipper().recall(image, 4.0) is None
    skipper = remembering(image)
    assert skipper.recall(image, 0.0) is None, "switched off"
    assert skipper.recall(image[:-2], 255.0) is None, "of another size"
    skipper.reset()
    assert skipper.recall(image, 255.0) is None


def test_a_frame_that_was_not_looked_at_changes_nothing() -> None:
    """Its detection failed, say: `remember` is not called."""
    image, other = scene(0), scene(1)
    skipper = remembering(image)
    assert skipper.recall(other, 4.0) is None
    assert skipper.recall(image, 4.0) == "found"
