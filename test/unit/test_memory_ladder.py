"""What is done without when memory runs out, and when it is tried again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anomaly_detector_ros.building import fewer_prompts
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.features.networks import OneByOneFeatures
from anomaly_detector_ros.profiles import load_profile
from anomaly_detector_ros.runtime.memory_ladder import (
    MAX_RESTORE_AFTER,
    RESTORE_AFTER,
    Ladder,
    is_out_of_memory,
    levels,
)
from anomaly_detector_ros.synthesis.denoisers.base import OneByOneDenoiser


class OnnxRuntimeError(Exception):
    """As ONNX Runtime's, which are plain exceptions of a module of its own."""

    __module__ = "onnxruntime.capi.onnxruntime_pybind11_state"


def raised_from(cause: Exception) -> Exception:
    error = ValueError("something else")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), True),
        (RuntimeError("cublas: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (OnnxRuntimeError("Failed to allocate memory for requested buffer of size 7"), True),
        (raised_from(MemoryError()), True),
        (RuntimeError("the denoiser returned values that are not finite"), False),
        (ValueError("out of memory"), False),
        (KeyError("x"), False),
    ],
)
def test_errors_that_mean_exhausted_memory(error: Exception, expected: bool):
    assert is_out_of_memory(error) == expected


def test_a_real_failed_allocation_is_recognised():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
    with pytest.raises(MemoryError) as raised:
        np.empty(2**60, np.uint8)
    assert is_out_of_memory(raised.value)


def test_only_other_devices_end_on_the_cpu():
    assert [level.on_cpu for level in levels(torch.device("cuda"))] == [False, False, False, True]
    assert not any(level.on_cpu for level in levels(torch.device("cpu")))
    assert levels(torch.device("cpu"))[0].title == ""


def test_down_at_once_and_up_after_a_while():
    now = [0.0]
    ladder = Ladder(3, lambda: now[0])
    assert not ladder.up()
    assert ladder.down()
    assert ladder.down()
    assert not ladder.down()
    assert ladder.level == 2
    now[0] = RESTORE_AFTER - 1
    assert not ladder.up()
    now[0] = RESTORE_AFTER
    assert ladder.up()
    assert not ladder.up()
    now[0] = 2 * RESTORE_AFTER
    assert ladder.up()
    assert ladder.level == 0
    assert not ladder.up()


def test_a_step_up_that_fails_is_tried_again_later_and_later():
    now = [0.0]
    ladder = Ladder(2, lambda: now[0])
    ladder.down()
    waits = []
    for _ in range(9):
        begun = now[0]
        while not ladder.up():
            now[0] += 10
        waits.append(now[0] - begun)
        assert ladder.down()
    assert waits[:4] == [RESTORE_AFTER, 2 * RESTORE_AFTER, 4 * RESTORE_AFTER, 8 * RESTORE_AFTER]
    assert max(waits) == waits[-1] == MAX_RESTORE_AFTER
    while not ladder.up():
        now[0] += 10
    now[0] += MAX_RESTORE_AFTER  # long enough without trouble
    assert not ladder.up()
    assert ladder.down()
    begun = now[0]
    while not ladder.up():
        now[0] += 10
    assert now[0] - begun == RESTORE_AFTER


@pytest.mark.parametrize(
    ("name", "changes", "setting", "expected"),
    [
        ("embedded", {}, "max_prompts", 4),
        ("embedded", {"segmenter": {"max_prompts": 2}}, "max_prompts", 1),
        ("paper_small", {}, "points_per_side", 8),
        ("paper_rugd", {}, "points_per_side", 16),
        ("light", {}, "max_prompts", None),
    ],
)
def test_a_quarter_of_the_prompts(name: str, changes: dict, setting: str, expected: int | None):
    profile = load_profile(name, overrides=changes)
    fewer = fewer_prompts(profile)
    assert fewer.segmenter.get(setting) == expected
    assert {k: v for k, v in fewer.segmenter.items() if k != setting} == {
        k: v for k, v in profile.segmenter.items() if k != setting
    }


def test_one_by_one_changes_no_result(light_profile: str):
    overrides = {"sampler": {"num_edits": 3}}
    detector = Detector.from_profile(light_profile, offline=True, overrides=overrides)
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    expected = detector.detect(image)
    seen = []
    denoiser, features = detector.denoiser, detector.features

    class Counting:
        schedule = denoiser.schedule

        def __call__(self, x, t):
            seen.append(len(x))
            return denoiser(x, t)

    detector.denoiser = OneByOneDenoiser(Counting())
    detector.features = OneByOneFeatures(features)
    found = detector.detect(image)
    assert set(seen) == {1}
    np.testing.assert_allclose(found.heatmap, expected.heatmap, atol=1e-5)
    np.testing.assert_allclose(found.edited.astype(int), expected.edited.astype(int), atol=1)
