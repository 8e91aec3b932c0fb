"""The quality of edits, against what it must be by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from anomaly_detector_ros.distances.cosine import cosine_distance
from anomaly_detector_ros.distances.novelty import memory_distance
from anomaly_detector_ros.evaluation.metrics import edits
from anomaly_detector_ros.evaluation.metrics.edits import (
    EditedFrame,
    EditMeasurement,
    KernelDistance,
    gradient_energy,
    kernel_means,
)

ONE = np.ones((1, 1))


def kid(x, y, paired=False):
    once = [np.ones((1, len(of))) for of in (x, y)]
    means = kernel_means(x, x), kernel_means(y, y), kernel_means(x, y)
    return float(KernelDistance(*means, paired)(*once)[0])


def draw(frames, patches, channels, shift=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((frames, patches, channels), generator=generator).double() + shift


def gaussian_kernel(m, n):
    """E (x.y / d + 1)^3 of x ~ N(m, I), y ~ N(n, I): moments of x.y given y, then over y."""
    d, mn, mm, nn = len(m), m @ n, m @ m, n @ n
    second = d + mm + nn + mn**2
    third = mn**3 + 3 * mn * mm + 3 * mn * (nn + d + 2)
    return float(third / d**3 + 3 * second / d**2 + 3 * mn / d + 1)


def test_kid_of_shifted_gaussians_is_the_closed_form():
    x, y = draw(60, 200, 3), draw(60, 200, 3, shift=1.0, seed=1)
    m, n = np.zeros(3), np.ones(3)
    expected = gaussian_kernel(m, m) + gaussian_kernel(n, n) - 2 * gaussian_kernel(m, n)
    assert expected == pytest.approx(32 / 3)
    assert kid(x, y) == pytest.approx(expected, rel=0.05)


def test_kid_of_one_distribution_is_0_on_average():
    found = [kid(draw(10, 20, 4, seed=s), draw(10, 20, 4, seed=1000 + s)) for s in range(40)]
    # Unbiased: on both sides of 0. The biased estimate would be above it always.
    assert min(found) < 0 < max(found)
    assert abs(np.mean(found)) < 3 * np.std(found) / 40**0.5


def test_patches_of_a_frame_are_not_taken_for_frames_of_their_own():
    """Where each frame has a place of its own, pairs within frames make any two sets differ."""

    def frames(seed):
        return draw(8, 1, 4, seed=seed) + 0.1 * draw(8, 20, 4, seed=seed + 500)

    def mean_and_error(values):
        return np.mean(values), np.std(values) / len(values) ** 0.5

    pairs = [(frames(seed), frames(seed + 1000)) for seed in range(40)]
    mean, error = mean_and_error([kid(x, y) for x, y in pairs])
    assert abs(mean) < 3 * error
    # Each patch a frame of its own: what an estimate would say that takes patches as they come.
    alone = [[of.flatten(0, 1)[:, None] for of in pair] for pair in pairs]
    mean, error = mean_and_error([kid(x, y) for x, y in alone])
    assert mean > 5 * error


def test_edits_that_leave_frames_alone_are_at_a_kernel_distance_of_0():
    frames = draw(5, 7, 4)
    assert kid(frames, frames, paired=True) == pytest.approx(0, abs=1e-12)
    assert kid(frames, frames) < -0.01  # each frame beside itself: no longer unbiased


def test_a_resample_that_holds_frames_twice_takes_no_frame_beside_itself():
    x, y = draw(3, 4, 2), draw(3, 4, 2, shift=1.0, seed=1)
    means = kernel_means(x, x), kernel_means(y, y), kernel_means(x, y)
    counts = np.array([[2.0, 1.0, 0.0]])
    xx, yy, xy = means
    expected = xx[0, 1] + yy[0, 1] - 2 * (counts[0] @ xy @ counts[0]) / 9
    assert KernelDistance(*means)(counts, counts)[0] == pytest.approx(expected)
    assert np.isnan(KernelDistance(*means)(np.array([[3.0, 0.0, 0.0]]), counts)[0])


def test_gradient_energy_of_stripes_and_of_their_blur():
    stripes = torch.tensor([-1.0, 1.0]).repeat(8).expand(1, 3, 5, 16)
    assert gradient_energy(stripes).item() == pytest.approx(2)
    assert gradient_energy(stripes.transpose(2, 3)).item() == pytest.approx(2)
    assert gradient_energy(stripes / 2).item() == pytest.approx(1)
    assert gradient_energy(F.avg_pool2d(stripes, 2)).item() == pytest.approx(0)


def test_change_and_distance_from_the_memory_by_hand():
    original = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).reshape(1, 2, 1, 2)
    edit = torch.tensor([[3.0, 1.0], [0.0, 0.0]]).reshape(1, 2, 1, 2)
    assert cosine_distance(original, edit).tolist() == [[[0, 1]]]
    memory = F.normalize(torch.tensor([[5.0, 0.0], [1.0, 1.0]]), dim=1)
    found = memory_distance(original, memory)
    assert torch.allclose(found, torch.tensor([[[0, 1 - 0.5**0.5]]]), atol=1e-6)


def features(angles):
    """Patches (2, h, w) at these angles, in degrees."""
    radians = torch.tensor(angles, dtype=torch.float32).deg2rad()
    return torch.stack([radians.cos(), radians.sin()])


def measured(nominal, labelled, **options):
    measurement = EditMeasurement(features([[0.0]])[:, 0, :].T, **options)
    for image, edit, sharpness in nominal:
        measurement.add_nominal(EditedFrame(image, image, edit[None], sharpness, sharpness / 2))
    for image, edit, anomaly, valid in labelled:
        measurement.add_labelled(EditedFrame(image, image, edit[None], 1.0, 1.0), anomaly, valid)
    return measurement.result()


def cells(*rows):
    """A mask of 20x20 pixels a cell."""
    return np.kron(np.array(rows, bool), np.ones((20, 20), bool))


def test_changes_contrast_and_removal_by_hand():
    nominal = [
        (features([[0.0, 10.0, 0.0, 10.0]]), features([[60.0, 10.0, 0.0, 10.0]]), 0.5),
        (features([[0.0, 10.0, 0.0, 10.0]]), features([[0.0, 10.0, 0.0, 10.0]]), 0.7),
    ]
    everything = cells([1, 1, 1, 1])
    labelled = [
        # One anomaly goes, one stays, and beside them a patch changes that should not.
        (
            features([[90.0, 0.0, 90.0, 0.0]]),
            features([[0.0, 60.0, 90.0, 0.0]]),
            cells([1, 0, 1, 0]),
            everything,
        ),
        # One that the memory knows; the void next to it, unknown and changed, does not count.
        (
            features([[5.0, 0.0, 0.0, 90.0]]),
            features([[5.0, 0.0, 0.0, 0.0]]),
            cells([1, 0, 0, 1]),
            cells([1, 1, 1, 0]),
        ),
    ]
    found = measured(nominal, labelled)
    assert (found.sharpness, found.frame_sharpness) == pytest.approx((0.6, 0.3))
    assert found.nominal_change == pytest.approx(0.5 / 8)
    assert found.nominal_change_p99 == pytest.approx(0.5)
    assert found.anomaly_change == pytest.approx(1 / 3)
    assert found.beside_change == pytest.approx(0.5 / 4)
    assert found.contrast == pytest.approx((1 / 3) / (0.5 / 8))
    assert found.nominal_distance == pytest.approx(1 - np.cos(np.deg2rad(10)), abs=1e-6)
    assert (found.anomalies, found.nominal_frames, found.labelled_frames) == (3, 2, 2)
    assert found.removal == pytest.approx(2 / 3)
    assert found.unedited_nominal == pytest.approx(1 / 3)
    low, high = found.intervals["sharpness"]
    assert (low, high) == pytest.approx((0.5, 0.7))


def test_an_anomaly_smaller_than_a_patch_counts_by_its_share():
    """Its place is the patches that it lies in, and weighs as many pixels as it has."""
    anomaly = cells([0, 0, 0, 0])
    anomaly[5:15, 10:25] = True  # two thirds in the first patch
    image, edit = features([[0.0] * 4]), features([[90.0, 0.0, 0.0, 0.0]])
    found = measured([(image, edit, 1.0)], [(image, edit, anomaly, cells([1, 1, 1, 1]))])
    assert found.anomaly_change == pytest.approx(2 / 3)
    assert found.beside_change == pytest.approx((1 - 0.25) / (4 - 150 / 400))


def test_specks_are_no_anomalies_to_remove():
    anomaly = cells([0, 0, 0, 0])
    anomaly[0, :79] = True
    image = features([[0.0] * 4])
    labelled = [(image, image, anomaly, cells([1, 1, 1, 1]))]
    found = measured([(image, image, 1.0)], labelled)
    assert found.anomalies == 0
    assert np.isnan(found.removal)


def test_one_frame_of_a_kind_has_no_intervals_and_none_no_result():
    image, mask = features([[0.0, 1.0, 2.0, 3.0]]), cells([1, 0, 0, 0])
    found = measured([(image, image, 1.0)], [(image, image, mask, mask)])
    assert (found.sharpness, found.removal, found.intervals) == (1, 1, {})
    assert np.isnan(found.kid)
    with pytest.raises(ValueError, match="1 nominal and 0 labelled frames"):
        measured([(image, image, 1.0)], [])


def test_intervals_hold_the_truth_as_often_as_they_say(monkeypatch):
    """Frames whose change is uniform in [0, 1]: the mean is 0.5."""
    monkeypatch.setattr(edits, "_PATCHES", 1)
    held = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        image = features([[0.0]])
        nominal = [
            (image, features([[float(np.rad2deg(np.arccos(1 - u)))]]), 1.0) for u in rng.random(20)
        ]
        mask = cells([1])
        labelled = [(image, image, mask, mask)] * 2
        low, high = measured(nominal, labelled, resamples=200).intervals["nominal_change"]
        held += low <= 0.5 <= high
    assert 50 <= held <= 60
