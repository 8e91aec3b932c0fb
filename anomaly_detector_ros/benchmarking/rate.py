"""A check of the times against the arithmetic: how fast the denoiser computes, and could.

The denoiser does a known number of operations. Over the synthesis time that is a rate, which should
not be above that of a large matrix product or convolution in the same precision: its share of it
says how much there is to gain, and one above 1 that a time or a count is wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from anomaly_detector_ros.benchmarking.timing import Passes
from anomaly_detector_ros.runtime.clock import StageClock
from anomaly_detector_ros.synthesis.denoisers.base import Denoiser
from anomaly_detector_ros.synthesis.denoisers.unet import UnetDenoiser

# Rows of the square matrices; channels, height and width, and number of the convolution's images.
# Enough to reach the full rate: 2 GFLOP for a slow core, 600 to 1,100 for a GPU.
_CPU_SIZES, _CUDA_SIZES = (1024, 128, 80, 1), (8192, 512, 128, 8)


def pass_flops(denoiser: UnetDenoiser, size: tuple[int, int]) -> tuple[int, int]:
    """Operations of one image's forward pass, and of its backward pass to the image.

    Convolutions and matrix products, two operations to a multiply-add; norms and activations are
    not counted.

    Args:
        size: H and W of the images.
    """
    image = torch.zeros(1, 3, *size, device=denoiser.device)
    x = denoiser.space.encode(image).requires_grad_()
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        x0 = denoiser(x.clone(), 0)  # the counter's modules take no leaf
        forward = counter.get_total_flops()
        torch.autograd.grad(x0.sum(), x)
    return forward, counter.get_total_flops() - forward


@functools.cache
def peak_rate(device: torch.device, dtype: torch.dtype, repeats: int = 10) -> float:
    """Operations per second of the fastest of some large products in ``dtype``; timed once.

    A matrix product and a convolution, as their libraries differ: in float32, torch's matrix
    product takes twice as long as its convolution on some AMD processors.
    """
    size, channels, height, images = _CUDA_SIZES if device.type == "cuda" else _CPU_SIZES
    a = torch.randn(size, size, device=device).to(dtype)
    x = torch.randn(images, channels, height, height, device=device)
    x = x.to(dtype, memory_format=torch.channels_last)
    kernel = torch.randn(channels, channels, 3, 3, device=device).to(x)
    matrix = 2 * size**3 / fastest(lambda: a @ a, device, repeats)
    pixels = images * height**2
    seconds = fastest(lambda: F.conv2d(x, kernel, padding=1), device, repeats)
    return max(matrix, 2 * 9 * channels**2 * pixels / seconds)


def fastest(product: Callable[[], Tensor], device: torch.device, repeats: int) -> float:
    """Seconds of the fastest of some runs, after one that warms up."""
    product()
    seconds = []
    for _ in range(repeats):
        clock = StageClock(device)
        with clock.measure("product"):
            product()
        seconds.append(clock.seconds["product"])
    return min(seconds)


def synthesis_rate(
    denoiser: Denoiser, size: tuple[int, int], passes: Passes, seconds: float
) -> dict[str, Any] | None:
    """The denoiser's rate, and its share of `peak_rate`; None where torch does not run it.

    Args:
        size: H and W at which it ran.
        passes: what it did in ``seconds`` of synthesis.
    """
    if not isinstance(denoiser, UnetDenoiser):
        return None
    forward, backward = pass_flops(denoiser, size)
    rate = (passes.forward * forward + passes.backward * backward) / seconds
    peak = peak_rate(denoiser.device, denoiser.dtype)
    return {
        "flops_per_forward_pass": forward,
        "flops_per_backward_pass": backward,
        "flops_per_second": rate,
        "dtype": str(denoiser.dtype).removeprefix("torch."),
        "peak_flops_per_second": peak,
        "share_of_peak": rate / peak,
    }
