"""Training images: reading, cropping, choosing frames of recordings, memorisation."""

import cv2
import numpy as np
import psutil
import pytest
import torch
from support.training_runs import SIZE, scene, write_scenes

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.runtime.tensors import to_pictures
from anomaly_detector_ros.sources.folders import find_images
from anomaly_detector_ros.training.dataset import (
    DeviceImages,
    FrameFilter,
    TrainingImages,
    crop_to_aspect,
    sharpness,
)
from anomaly_detector_ros.training.measures import compare, make_grid


def images_of(seeds, size=SIZE, min_crop=0.8):
    return TrainingImages([scene(seed) for seed in seeds], size, min_crop)


def test_augmented_crops_keep_the_scene_upright():
    data = images_of(range(8))
    rng = np.random.default_rng(0)
    for i in range(len(data)):
        crop = data.augmented(i, rng)
        assert crop.shape == (16, 24, 3)
        assert crop[0].mean() > crop[-1].mean()


@pytest.mark.parametrize("min_crop", [1.0, 0.8, 0.5])
def test_no_crop_is_smaller_than_asked_for_nor_enlarged(min_crop):
    columns = np.linspace(0, 255, 480).astype(np.uint8)
    ramp = np.broadcast_to(columns[:, None], (320, 480, 3)).copy()
    data = TrainingImages([ramp], SIZE, min_crop)
    assert data.images[0].shape == (round(16 / min_crop), round(24 / min_crop), 3)
    rng = np.random.default_rng(0)
    crops = [data.augmented(0, rng).astype(int) for _ in range(200)]
    seen = [np.abs(crop[8, -1, 0] - crop[8, 0, 0]) / 255 * 24 / 23 for crop in crops]
    assert min(seen) == pytest.approx(min_crop, abs=0.06)
    assert max(seen) == pytest.approx(1, abs=0.06)


def test_another_aspect_ratio_is_cut_about_the_middle_and_a_near_one_squashed():
    picture = np.zeros((30, 300, 3), np.uint8)
    picture[:, 140:160] = 255
    part = crop_to_aspect(picture, (32, 48))
    assert part.shape == (30, 45, 3)
    assert part.mean(axis=(0, 2)).argmax() == 13
    assert crop_to_aspect(np.zeros((90, 45, 3), np.uint8), (32, 48)).shape == (30, 45, 3)
    near = np.zeros((100, 156, 3), np.uint8)
    assert crop_to_aspect(near, (32, 48)) is near


def test_mixed_sizes_become_one():
    pictures = [np.zeros(shape, np.uint8) for shape in [(40, 60, 3), (80, 60, 3), (33, 99, 3)]]
    data = TrainingImages(pictures, SIZE)
    assert {image.shape for image in data.images} == {(20, 30, 3)}
    assert data.enlarged == 0
    assert data.whole(2).shape == (16, 24, 3)


def test_images_smaller_than_the_training_size_are_refused(tmp_path):
    write_scenes(tmp_path, 1)
    with pytest.raises(UserError, match=r"'.*000.png' is 40x60, smaller than .* 48x56"):
        TrainingImages(find_images(tmp_path), (48, 56))
    with pytest.raises(UserError, match=r"frame 0 is 40x60, smaller"):
        TrainingImages([scene(0)], (32, 64))


def test_images_too_small_for_their_smallest_crops_are_counted():
    assert images_of([0, 1], (40, 56)).enlarged == 2
    assert images_of([0, 1], (40, 56), min_crop=1).enlarged == 0


def test_more_images_than_memory_holds_are_refused(monkeypatch):
    class Memory:
        available = 100_000

    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory)
    with pytest.raises(UserError, match=r"1000 more images of 20x30 need 0.0 GB"):
        TrainingImages([scene(0)] * 1000, SIZE)
    with pytest.raises(UserError, match=r"256 more images"):  # of an unknown number
        TrainingImages((scene(0) for _ in range(1000)), SIZE)
    Memory.available = 1_800_000
    assert len(TrainingImages([scene(0)] * 1000, SIZE)) == 1000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"1000 more images"):
        TrainingImages([scene(0)] * 1000, SIZE)


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(UserError, match="no images"):
        find_images(tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        find_images(tmp_path / "absent")
    (tmp_path / "broken.jpg").write_bytes(b"not a jpeg")
    with pytest.raises(UserError, match=r"cannot read '.*broken.jpg'"):
        TrainingImages(find_images(tmp_path), SIZE)


def test_blurred_and_repeated_frames_are_left_out():
    frames = FrameFilter(min_sharpness=30, min_change=2)
    blurred = cv2.GaussianBlur(scene(1), (0, 0), 8)
    noisy = np.clip(scene(0).astype(int) + np.tile([1, -1], (40, 30))[:, :, None], 0, 255)
    kept = [frames.keeps(f) for f in (scene(0), noisy.astype(np.uint8), blurred, scene(1))]
    assert kept == [True, False, False, True]
    assert (frames.repeated, frames.blurred) == (1, 1)
    everything = FrameFilter(min_sharpness=0, min_change=0)
    assert all(everything.keeps(frame) for frame in (scene(0), scene(0), blurred))


def test_frames_are_compared_with_the_last_one_kept():
    frames = FrameFilter(min_sharpness=0, min_change=2)
    slow = [np.full((36, 64, 3), 100 + i, np.uint8) for i in range(9)]
    assert [frames.keeps(frame) for frame in slow] == [i % 2 == 0 for i in range(9)]


def test_sharpness_does_not_depend_on_the_size():
    grey = cv2.cvtColor(scene(0), cv2.COLOR_RGB2GRAY)
    large = cv2.resize(grey, (320, 213), interpolation=cv2.INTER_CUBIC)
    larger = cv2.resize(large, (1280, 852), interpolation=cv2.INTER_CUBIC)
    assert sharpness(larger) == pytest.approx(sharpness(large), rel=0.2)
    assert sharpness(np.full((40, 60), 9, np.uint8)) == 0


def test_copies_of_training_images_mirrored_or_cropped_are_found():
    training = images_of(range(10))
    middle = training.images[5][1:19, 1:28]  # of 20 x 30, nine tenths of each side
    copies = [training.whole(3)[:, ::-1], training.whole(7), cv2.resize(middle, SIZE[::-1])]
    found = compare(np.stack([*copies, scene(99)[:16, :24]]), training)
    assert np.array_equal(found.nearest[:2], np.stack(copies[:2]))
    assert np.abs(found.nearest[2].astype(int) - copies[2]).max() < 20
    assert found.distances[:3].max() < 0.3 * found.distances[3]
    assert found.ratio is None


def test_the_ratio_tells_copies_from_new_scenes(tmp_path):
    training, held_out = images_of(range(40)), images_of(range(100, 140))
    rng = np.random.default_rng(5)
    copies = np.stack([training.augmented(i, rng) for i in range(40)])
    new = images_of(range(200, 240))
    scenes = np.stack([new.augmented(i, rng) for i in range(40)])
    repeats, invents = compare(copies, training, held_out), compare(scenes, training, held_out)
    assert repeats.ratio == pytest.approx(repeats.memorised_ratio, rel=0.2)
    assert repeats.ratio < 0.8
    assert invents.ratio == pytest.approx(1, abs=0.15)
    invents.save_picture(tmp_path / "memorisation.png")
    assert cv2.imread(str(tmp_path / "memorisation.png")).std() > 10


def test_a_grid_goes_row_by_row():
    pictures = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1).repeat(3, 3)
    assert make_grid(pictures, 3)[:, :, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_batches_made_on_a_device_are_crops_like_those_of_the_cpu(tmp_path):
    """What a GPU does with images of one size, on the CPU."""
    files = sorted(write_scenes(tmp_path / "scenes", 3).iterdir())
    whole = TrainingImages(files, (40, 56), 1.0)
    on_device = DeviceImages(whole, torch.device("cpu"))
    given = to_pictures(on_device.batch(16, np.random.default_rng(0)))
    views = [view for image in whole.images for view in (image, image[:, ::-1])]
    found = [next(i for i, v in enumerate(views) if np.array_equal(v, each)) for each in given]
    assert len(set(found)) > 3
    cropped = DeviceImages(TrainingImages(files, (40, 56), 0.5), torch.device("cpu"))
    rng = np.random.default_rng(0)
    batch = cropped.batch(32, rng)
    assert batch.shape == (32, 3, 40, 56)
    # Enlarged, a crop is smoother than the image; left whole it is not.
    left = cropped.batch(32, rng, uncropped=1.0)
    assert batch.diff(dim=3).abs().mean() < 0.9 * left.diff(dim=3).abs().mean()
    # Elsewhere, and where sizes differ, the CPU makes them.
    assert whole.on(torch.device("cpu")) is whole


def test_memorisation_where_crops_have_another_shape_by_a_pixel():
    """Of 272x512 a thumbnail is 8.5 pixels high: crops must not be rounded the other way."""
    size = (272, 512)
    pictures = [cv2.resize(scene(seed), size[::-1]) for seed in range(3)]
    data = TrainingImages(pictures, size, 0.86)
    assert compare(np.stack(pictures), data, data).distances.max() < 1
