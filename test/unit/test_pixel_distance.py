from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from anomaly_detector_ros.distances.pixel import ssim_distance
from anomaly_detector_ros.errors import UserError


def _plain_ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Wang et al. 2004, equation 13, per colour, of values in [0, 1]; valid windows only."""
    a, b = (a + 1) / 2, (b + 1) / 2
    x = torch.arange(11.0) - 5
    line = torch.exp(-(x**2) / (2 * 1.5**2))
    window = torch.outer(line, line)
    window = (window / window.sum()).double().view(1, 1, 11, 11)

    def mean(values: torch.Tensor) -> torch.Tensor:
        return F.conv2d(values.double()[:, None], window)[:, 0]

    c1, c2 = 0.01**2, 0.03**2
    var_a, var_b = mean(a**2) - mean(a) ** 2, mean(b**2) - mean(b) ** 2
    cov = mean(a * b) - mean(a) * mean(b)
    luminance = (2 * mean(a) * mean(b) + c1) / (mean(a) ** 2 + mean(b) ** 2 + c1)
    return luminance * (2 * cov + c2) / (var_a + var_b + c2)


def test_ssim_is_the_papers_equation() -> None:
    torch.manual_seed(0)
    original = torch.rand(1, 3, 20, 26) * 2 - 1
    edits = (original + torch.randn(2, 3, 20, 26) * 0.3).clamp(-1, 1)
    got = ssim_distance(original, edits)
    assert got.shape == (2, 20, 26)
    assert got.dtype == torch.float32
    for edit, distance in zip(edits, got, strict=True):
        want = (1 - _plain_ssim(original[0], edit).mean(dim=0)) / 2
        torch.testing.assert_close(distance[5:-5, 5:-5], want.float(), atol=1e-4, rtol=0)


def test_ssim_shows_where_the_structure_changed() -> None:
    torch.manual_seed(0)
    original = torch.rand(1, 3, 48, 64) * 2 - 1
    edits = original.repeat(2, 1, 1, 1)
    edits[1, :, 20:30, 30:45] *= -1
    same, changed = ssim_distance(original, edits)
    assert same.max() < 1e-6
    assert changed[22:28, 33:42].mean() > 0.5
    assert changed[:, :20].max() < 1e-6
    assert changed.max() <= 1


def test_ssim_refuses_images_smaller_than_its_window() -> None:
    with pytest.raises(UserError, match="at least 11 x 11"):
        ssim_distance(torch.zeros(1, 3, 10, 40), torch.zeros(1, 3, 10, 40))
