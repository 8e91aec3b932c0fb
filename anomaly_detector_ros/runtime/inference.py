"""Networks made ready to run."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def ready(network: Network, device: torch.device | str, dtype: torch.dtype) -> Network:
    """For inference: no gradients of the weights, the faster memory layout, and precision.

    Args:
        network: changed in place.
        device: where it will run.
        dtype: of its products and convolutions, which are to be called under `precision`; all
            else is float32.
    """
    network = network.float().eval().requires_grad_(False)
    if dtype is not torch.float32:
        # Autocast would convert the weights anew in every pass.
        for module in network.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.MultiheadAttention)):
                module.to(dtype)
    if split_attention(device, dtype):
        attentions: list[Any] = [each for each in network.modules() if hasattr(each, "fused_attn")]
        for attention in attentions:  # timm's
            attention.fused_attn = False
    return network.to(device).to(memory_format=torch.channels_last)


def precision(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """In which a network that is `ready` is called: autocast unless all of it is float32."""
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)


def split_attention(device: torch.device | str, dtype: torch.dtype) -> bool:
    """Whether attention is faster as two products and a softmax: in bfloat16 on a CPU.

    torch's fused attention makes no use of a processor's bfloat16 products: with 685 tokens and
    six heads of 64 it takes 9.5 ms of a core, and the three steps take 4.2 ms. In float32, and on
    GPUs, the fused one is faster.
    """
    return dtype is torch.bfloat16 and torch.device(device).type == "cpu"
