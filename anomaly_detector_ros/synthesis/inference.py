"""Networks made ready to run."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def ready(network: Network, device: torch.device | str, dtype: torch.dtype) -> Network:
    """For inference: no gradients of the weights, the faster memory layout, and precision."""
    network = network.float().eval().requires_grad_(False)
    if dtype != torch.float32:
        # Autocast would convert the weights anew in every pass.
        for module in network.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.to(dtype)
    return network.to(device).to(memory_format=torch.channels_last)
