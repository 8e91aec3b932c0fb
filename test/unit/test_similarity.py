"""Similarity kernels: values by hand, gradients against autograd, products against brute force."""

import math

import pytest
import torch

from anomaly_detector_ros.synthesis.similarity.changed_fraction import ChangedFractionSimilarity
from anomaly_detector_ros.synthesis.similarity.norms import GaussianSimilarity, L1Similarity

SHARP = ChangedFractionSimilarity(12.0, width=(2.0, 0.4), steepness=(1.0, 20.0))
KERNELS = [GaussianSimilarity(30.0), L1Similarity(30.0), SHARP, SHARP.at(0.7), SHARP.at(1.0)]
NAMES = ["gaussian", "l1", "changed-0", "changed-0.7", "changed-1"]


def images(seed: int = 0, shape=(2, 3, 4, 5)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.rand((2, *shape), generator=generator, dtype=torch.float64) * 2 - 1).unbind()
    return x, y


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_values_by_hand():
    x = torch.zeros(1, 3, 1, 2)
    y = torch.zeros(1, 3, 1, 2)
    y[0, 0, 0, 0] = 0.5  # one of six values
    assert GaussianSimilarity(12.0).log_prob(x, y).tolist() == pytest.approx([-12 * 0.25 / 6])
    assert L1Similarity(12.0).log_prob(x, y).tolist() == pytest.approx([-12 * 0.5 / 6])
    same = sigmoid(4) ** 2  # u(0) at width 0.4, steepness 20
    off = sigmoid(14) * sigmoid(-6)  # u(0.5)
    changed = [1 - same**3, 1 - off * same**2]
    assert SHARP.log_prob(x, y).tolist() == pytest.approx([-12 * sum(changed[::-1]) / 2])


def test_changed_fraction_counts_pixels_not_amounts():
    kernel = ChangedFractionSimilarity(1.0)
    x = torch.zeros(1, 3, 4, 5)
    y = x.clone()
    y[0, :, 0, :3] = 0.3
    few = float(kernel.log_prob(x, y))
    assert few - float(kernel.log_prob(x, x)) == pytest.approx(-3 / 20, abs=0.01)
    assert float(kernel.log_prob(x, 3 * y)) == pytest.approx(few, abs=1e-3)


def test_changed_fraction_goes_from_first_to_last():
    x, y = images()
    halfway = ChangedFractionSimilarity(12.0, width=(1.2, 1.2), steepness=(10.5, 10.5))
    assert torch.equal(SHARP.at(0.5).log_prob(x, y), halfway.log_prob(x, y))
    assert torch.equal(SHARP.at(0.0).log_prob(x, y), SHARP.log_prob(x, y))
    for kernel in (GaussianSimilarity(1.0), L1Similarity(1.0)):
        assert kernel.at(0.5) == kernel


@pytest.mark.parametrize("kernel", KERNELS, ids=NAMES)
def test_gradients_against_autograd(kernel):
    x, y = images()
    x.requires_grad_(True)
    (expected,) = torch.autograd.grad(kernel.log_prob(x, y).sum(), x)
    torch.testing.assert_close(kernel.grad(x, y), expected, rtol=1e-9, atol=1e-12)
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("kernel", KERNELS, ids=NAMES)
def test_images_of_a_batch_do_not_mix(kernel):
    x, y = images()
    torch.testing.assert_close(kernel.log_prob(x, y)[1:], kernel.log_prob(x[1:], y[1:]))
    torch.testing.assert_close(kernel.grad(x, y)[1:], kernel.grad(x[1:], y[1:]))


@pytest.mark.parametrize("kernel", KERNELS[:2], ids=NAMES[:2])
@pytest.mark.parametrize("variance", [0.02, 1.0])
def test_product_modes_against_brute_force(kernel, variance):
    x, y = images()
    mode = kernel.product_mode(x, variance, y)
    grid = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    for mean, target, found in zip(
        x[0].flatten()[:6], y[0].flatten()[:6], mode[0].flatten()[:6], strict=True
    ):
        distance = (grid - target) ** 2 if kernel is KERNELS[0] else (grid - target).abs()
        log_product = -((grid - mean) ** 2) / (2 * variance) - 30 / x[0].numel() * distance
        assert float(found) == pytest.approx(float(grid[log_product.argmax()]), abs=6e-4)


@pytest.mark.parametrize("kernel", KERNELS, ids=NAMES)
@pytest.mark.parametrize("variance", [1e-6, 0.3, 1e9])
def test_product_modes_lie_between_mean_and_input(kernel, variance):
    x, y = images()
    mode = kernel.product_mode(x, variance, y)
    low, high = torch.minimum(x, y), torch.maximum(x, y)
    assert bool(((mode >= low - 1e-9) & (mode <= high + 1e-9)).all())
    assert (mode - y).abs().sum() < (x - y).abs().sum()
    if variance < 1e-3:  # a short step follows the gradient
        torch.testing.assert_close(mode, x + variance * kernel.grad(x, y), rtol=0, atol=1e-8)


@pytest.mark.parametrize("kernel", KERNELS, ids=NAMES)
def test_the_input_itself_stays(kernel):
    x, _ = images()
    assert torch.equal(kernel.product_mode(x, 0.3, x), x)
    assert not kernel.grad(x, x).any()
    assert torch.isfinite(kernel.log_prob(x, x)).all()


def test_published_constants_do_not_overflow_in_float32():
    x, y = (image.float() for image in images())
    for time in (0.0, 0.5, 1.0):
        kernel = ChangedFractionSimilarity(6e4).at(time)
        assert torch.isfinite(kernel.grad(x, y)).all()
        assert torch.isfinite(kernel.product_mode(x, 1e4, y)).all()
