from __future__ import annotations

import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.features.featup import (
    JbuStack,
    JbuStage,
    UpsampledFeatures,
    load_featup,
)
from anomaly_detector_ros.features.preprocessing import IMAGENET_MEAN, IMAGENET_STD, normalise

CHANNELS = 5


@pytest.fixture(scope="module")
def stack() -> JbuStack:
    """A stack of random weights, temperatures and widths, so that nothing cancels."""
    torch.manual_seed(0)
    network = JbuStack(CHANNELS)
    for i, stage in enumerate(network.stages):
        stage.range_temp.data.fill_(0.5 + 0.2 * i)
        stage.sigma_spatial.data.fill_(0.7 + 0.1 * i)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def released(shared_models: Path) -> JbuStack:
    return load_featup(shared_models / "featup_maskclip_jbu.ckpt")


def _whole(upsampled: UpsampledFeatures) -> Tensor:
    height, width = upsampled.size
    return upsampled.window(slice(0, height), slice(0, width))


# An independent reference in plain loops: every pixel by the formulas of the paper.


def _cubic(distance: float) -> float:
    """Keys' cubic convolution with a = -0.75."""
    a, d = -0.75, abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def _doubled(features: np.ndarray, y: int, x: int) -> np.ndarray:
    """Pixel (y, x) of features (C, h, w) doubled by bicubic interpolation."""
    height, width = features.shape[1:]
    cell_y, cell_x = (y + 0.5) / 2 - 0.5, (x + 0.5) / 2 - 0.5
    total = np.zeros(len(features))
    for i in range(math.floor(cell_y) - 1, math.floor(cell_y) + 3):
        for j in range(math.floor(cell_x) - 1, math.floor(cell_x) + 3):
            inside = features[:, min(max(i, 0), height - 1), min(max(j, 0), width - 1)]
            total += _cubic(cell_y - i) * _cubic(cell_x - j) * inside
    return total


def _reflected(i: int, size: int) -> int:
    return -i if i < 0 else 2 * (size - 1) - i if i >= size else i


def _mlp(layers: torch.nn.Sequential, values: np.ndarray) -> np.ndarray:
    first, last = layers[0], layers[3]
    hidden = first.weight[:, :, 0, 0].double().numpy() @ values + first.bias.double().numpy()
    hidden = np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in hidden])
    return last.weight[:, :, 0, 0].double().numpy() @ hidden + last.bias.double().numpy()


def _naive_doubling(stage: JbuStage, features: np.ndarray, guide: np.ndarray) -> np.ndarray:
    """Features (C, h, w) and guide (3, 2h, 2w) -> (C, 2h, 2w)."""
    height, width = guide.shape[1:]
    result = np.zeros((len(features), height, width))
    for y in range(height):
        for x in range(width):
            around = [
                (_reflected(y + dy, height), _reflected(x + dx, width))
                for dy in range(-3, 4)
                for dx in range(-3, 4)
            ]
            own = _mlp(stage.range_proj, guide[:, y, x])
            likeness = [own @ _mlp(stage.range_proj, guide[:, i, j]) for i, j in around]
            likeness = np.exp(float(stage.range_temp)) * np.array(likeness)
            weights = np.exp(likeness - likeness.max())
            weights /= weights.sum()
            distances = [(dy**2 + dx**2) / 9 for dy in range(-3, 4) for dx in range(-3, 4)]
            weights *= np.exp(-np.array(distances) / (2 * float(stage.sigma_spatial) ** 2))
            weights /= weights.sum()
            weights += 0.1 * _mlp(stage.fixup_proj, np.concatenate([weights, guide[:, y, x]]))
            for weight, (i, j) in zip(weights, around, strict=True):
                result[:, y, x] += weight * _doubled(features, i, j)
    return result


def test_one_doubling_is_the_formula_pixel_by_pixel(stack: JbuStack) -> None:
    torch.manual_seed(1)
    features, guide = torch.randn(2, 3, 4), torch.randn(3, 6, 8)
    upsampled = UpsampledFeatures(stack, features, guide, levels=1, fixup=False)
    expected = _naive_doubling(stack.up1, features.double().numpy(), guide.double().numpy())
    np.testing.assert_allclose(
        _whole(upsampled).permute(2, 0, 1).numpy(), expected, rtol=1e-4, atol=1e-5
    )


def test_stages_follow_one_another_each_with_its_averaged_guide(stack: JbuStack) -> None:
    torch.manual_seed(2)
    features, guide = torch.randn(2, 2, 3), torch.randn(3, 19, 25)  # no multiple of the grid
    once = UpsampledFeatures(stack, features, guide, levels=1, fixup=False)
    twice = UpsampledFeatures(stack, features, guide, levels=2, fixup=False)
    averaged = F.adaptive_avg_pool2d(guide, (8, 12))
    below = _whole(once).permute(2, 0, 1).double().numpy()
    expected = _naive_doubling(stack.up2, below, averaged.double().numpy())
    np.testing.assert_allclose(
        _whole(twice).permute(2, 0, 1).numpy(), expected, rtol=1e-4, atol=1e-5
    )


def test_any_window_equals_that_part_of_the_whole(stack: JbuStack) -> None:
    torch.manual_seed(3)
    features, guide = torch.randn(CHANNELS, 3, 5), torch.randn(3, 48, 80)
    upsampled = UpsampledFeatures(stack, features, guide, levels=4, fixup=True)
    assert upsampled.size == (48, 80)
    whole = _whole(upsampled)
    for top, bottom, left, right in [(0, 16, 0, 16), (13, 30, 7, 58), (47, 48, 79, 80)]:
        rows, columns = slice(top, bottom), slice(left, right)
        part = upsampled.window(rows, columns)
        torch.testing.assert_close(part, whole[rows, columns], rtol=1e-5, atol=1e-5)


def test_fixup_adds_a_tenth_of_its_convolution_where_the_width_fits(stack: JbuStack) -> None:
    torch.manual_seed(4)
    features, guide = torch.randn(CHANNELS, 2, 2), torch.randn(3, 32, 32)
    plain = _whole(UpsampledFeatures(stack, features, guide, levels=4, fixup=False))
    fixed = _whole(UpsampledFeatures(stack, features, guide, levels=4, fixup=True))
    convolved = stack.fixup_proj(plain.permute(2, 0, 1)).permute(1, 2, 0)
    torch.testing.assert_close(fixed, plain + 0.1 * convolved, rtol=1e-5, atol=1e-5)
    narrow = [
        _whole(UpsampledFeatures(stack, features[:-1], guide, levels=4, fixup=fixup))
        for fixup in (True, False)
    ]
    assert torch.equal(*narrow)
    torch.testing.assert_close(narrow[0], plain[..., :-1], rtol=1e-5, atol=1e-5)


def test_equal_features_keep_their_direction_and_without_kernel_fixup_their_length(
    stack: JbuStack,
) -> None:
    torch.manual_seed(5)
    features = torch.randn(CHANNELS, 1, 1).expand(CHANNELS, 3, 4)
    guide = torch.randn(3, 48, 64)
    upsampled = _whole(UpsampledFeatures(stack, features, guide, levels=4, fixup=False))
    alike = F.cosine_similarity(upsampled, features[:, 0, 0].expand_as(upsampled), dim=-1)
    torch.testing.assert_close(alike, torch.ones(48, 64))
    exact = JbuStack(CHANNELS).requires_grad_(False)
    for stage in exact.stages:
        stage.fixup_proj[3].weight.zero_()
        stage.fixup_proj[3].bias.zero_()
    upsampled = _whole(UpsampledFeatures(exact, features, guide, levels=4, fixup=False))
    torch.testing.assert_close(upsampled, features[:, 0, 0].expand_as(upsampled))


def test_the_released_upsampler_follows_an_edge_better_than_bilinear(released: JbuStack) -> None:
    edge, side, cells = 75, 160, 10  # the edge lies inside a cell
    image = torch.full((1, 3, side, side), -0.6)
    image[..., edge:] = 0.7
    truth = torch.zeros(2, side, side)
    truth[0, :, :edge] = truth[1, :, edge:] = 1.0
    features = F.adaptive_avg_pool2d(truth, (cells, cells))
    guide = normalise(image, (side, side), IMAGENET_MEAN, IMAGENET_STD)[0]
    ours = _whole(UpsampledFeatures(released, features, guide, levels=4, fixup=False))
    bilinear = F.interpolate(features[None], size=(side, side), mode="bilinear")[0]

    def error(upsampled: Tensor) -> float:
        return float((1 - F.cosine_similarity(upsampled, truth, dim=0)).mean())

    assert error(ours.permute(2, 0, 1)) < 0.4 * error(bilinear)


def test_the_released_checkpoint_loads(released: JbuStack) -> None:
    assert released.channels == 512
    assert [stage.fixup_proj[0].weight.shape for stage in released.stages] == [(49, 52, 1, 1)] * 4
    # As printed from the file.
    assert released.up1.range_temp.item() == pytest.approx(0.3528043)
    assert released.up4.sigma_spatial.item() == pytest.approx(1.3294389)
    assert not any(parameter.requires_grad for parameter in released.parameters())


# Checkpoints


def _save(path: Path, stack: JbuStack, **changes: object) -> Path:
    state = {f"upsampler.{name}": value for name, value in stack.state_dict().items()}
    state["model.1.norm.weight"] = torch.ones(3)  # the backbone's, in some of the releases
    torch.save({"epoch": 0, "state_dict": state | changes}, path)
    return path


def test_a_checkpoint_gives_back_its_weights(stack: JbuStack, tmp_path: Path) -> None:
    loaded = load_featup(_save(tmp_path / "jbu.ckpt", stack))
    assert loaded.channels == CHANNELS
    for name, value in stack.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


class _Malicious:
    """Makes a directory when it is unpickled."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.directory),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_would_run_code_is_refused_and_does_not_run(
    stack: JbuStack, tmp_path: Path, zipped: bool
) -> None:
    trace = tmp_path / "trace"
    pickle.loads(pickle.dumps(_Malicious(trace)))
    trace.rmdir()  # it does run where pickles are trusted
    state = {f"upsampler.{name}": value for name, value in stack.state_dict().items()}
    path = tmp_path / "malicious.ckpt"
    torch.save(
        {"state_dict": state, "hyper_parameters": _Malicious(trace)},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(UserError, match=r"malicious\.ckpt: holds more than tensors"):
        load_featup(path)
    assert not trace.exists()


def test_files_that_are_no_jbu_checkpoint_are_named(stack: JbuStack, tmp_path: Path) -> None:
    path = tmp_path / "jbu.ckpt"
    with pytest.raises(UserError, match="no such weights file"):
        load_featup(path)
    whole = _save(path, stack).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"jbu\.ckpt: cannot be read"):
        load_featup(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"jbu\.ckpt: cannot be read"):
        load_featup(path)
    torch.save([torch.zeros(2)], path)
    with pytest.raises(UserError, match="it has no state_dict"):
        load_featup(path)
    torch.save({"state_dict": {"upsampler.up1.range_temp": torch.tensor(0.0)}}, path)
    with pytest.raises(UserError, match=r"it lacks 'fixup_proj\.1\.weight'"):
        load_featup(path)
    other = {"upsampler.up2.range_proj.0.weight": torch.zeros(16, 3, 1, 1)}
    with pytest.raises(UserError, match=r"size mismatch for up2\.range_proj\.0\.weight"):
        load_featup(_save(path, stack, **other))
