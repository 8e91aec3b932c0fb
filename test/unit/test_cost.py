"""Counted costs, and the time that they should take."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from anomaly_detector_ros.benchmarking.cost import (
    Machine,
    Operation,
    count_operations,
    stage_costs,
)
from anomaly_detector_ros.detector import Detector


def test_products_convolutions_and_attention_by_hand() -> None:
    a, b = torch.zeros(3, 4), torch.zeros(4, 5)
    x, kernel = torch.zeros(1, 2, 6, 6), torch.zeros(8, 2, 3, 3)
    tokens = torch.zeros(1, 2, 7, 4)
    with torch.inference_mode(), count_operations() as found:
        (a @ b).T.relu()  # turned round, nothing is computed
        F.conv2d(x, kernel, padding=1)
        F.scaled_dot_product_attention(tokens, tokens, tokens)
    product, relu, convolution, *attention = found
    assert product == Operation(2 * 3 * 4 * 5, 4 * (12 + 20 + 15))
    assert relu == Operation(0, 4 * 2 * 15)
    assert convolution.flops == 2 * 36 * 8 * 2 * 9
    assert sum(each.flops for each in attention) == 2 * 2 * 2 * 7 * 7 * 4


def test_the_longer_of_computing_and_moving_counts() -> None:
    machine = Machine(flops_per_second=100.0, bytes_per_second=10.0, seconds_per_call=0.5)
    operations = [Operation(flops=400, bytes=10), Operation(flops=0, bytes=20)]
    assert machine.seconds(operations, share=0.5) == pytest.approx(8 + 2 + 2 * 0.5)


def test_stages_of_a_frame(light_profile: str) -> None:
    detector = Detector.from_profile(light_profile, device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    costs = stage_costs(detector, image)
    flops = {stage: sum(each.flops for each in found) for stage, found in costs.items()}
    edit = detector.profile.parts.sampler
    with count_operations() as a_pass:
        detector.denoiser(torch.zeros(1, 3, *detector.profile.parts.denoiser.size), 1)
    forward = sum(each.flops for each in a_pass)
    assert flops["synthesis"] == edit.num_edits * edit.sampler.steps * forward > 0
    # Colours as features: nothing is multiplied, and much is moved.
    assert flops["features"] == flops["segmentation"] == 0
    assert all(sum(each.bytes for each in costs[stage]) > 0 for stage in ("features", "synthesis"))


def test_this_machine() -> None:
    found = Machine.measured(torch.device("cpu"), torch.float32)
    assert 0 < found.seconds_per_call < 1e-3
    assert found.bytes_per_second > 1e8
