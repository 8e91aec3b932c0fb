"""Faster ways to call a network with inputs of few shapes: CUDA graphs and torch.compile.

Both cost seconds when a shape is seen first, and nothing is lost where they do not work: the
network is then called as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from anomaly_detector_ros.errors import UserError, one_line

MODES = ("auto", "none", "graph", "compile")

Network = Callable[[Tensor, Tensor], Tensor]
"""Images (B, C, H, W) and timesteps int64 (B,) to a prediction like the images."""

# Every graph keeps the memory of its activations.
MAX_GRAPHS = 8
# Kernels and libraries settle in the first calls; none of that may be recorded.
_CALLS_BEFORE_CAPTURE = 3

_log = logging.getLogger(__name__)


def accelerate(network: Network, mode: str, device: torch.device) -> Network:
    """The network in the way that a profile's ``compile`` names.

    Args:
        network: what to call.
        mode: ``none``; ``graph`` (CUDA graphs; on the CPU a warning and the network as it is);
            ``compile`` (torch.compile and, on CUDA, graphs of that); ``auto``: graphs on CUDA,
            nothing on the CPU.
        device: where it runs.

    Raises:
        UserError: unknown mode.
    """
    if mode not in MODES:
        raise UserError(f"unknown compile mode '{mode}': choose one of {', '.join(MODES)}")
    if mode == "graph" and device.type != "cuda":
        _log.warning("denoiser: compile: graph needs a CUDA device: it runs without")
    if mode == "compile":
        network = WithFallback(torch.compile(network, dynamic=False), network, "torch.compile")
    if device.type == "cuda" and mode != "none":
        network = WithFallback(CudaGraphs(network), network, "the capture of CUDA graphs")
    return network


class WithFallback:
    """A faster form of a network until it fails, the plain one from then on and for gradients.

    Args:
        faster: gives the same as ``plain``.
        plain: the network itself.
        what: names the faster form in the warning.
    """

    def __init__(self, faster: Network, plain: Network, what: str) -> None:
        self._faster: Network | None = faster
        self._plain, self._what = plain, what

    def __call__(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """See `Network`."""
        if self._faster is None or (torch.is_grad_enabled() and x.requires_grad):
            return self._plain(x, timesteps)
        try:
            return self._faster(x, timesteps)
        except Exception as error:  # compilers raise anything
            reason = one_line(error, 200)
        # Not in the handler, whose traceback would keep the failed call's memory. Input that the
        # network itself refuses says nothing about its faster form.
        output = self._plain(x, timesteps)
        self._faster = None
        _log.warning("denoiser: %s failed (%s): it runs without", self._what, reason)
        return output


class CudaGraphs:
    """Records what a network launches on the GPU, once per shape and dtype, and replays it.

    A U-Net launches hundreds of kernels a pass; for few small images that takes the CPU longer
    than the GPU needs to run them. A shape beyond the first `MAX_GRAPHS` is not recorded.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._graphs: dict[tuple[torch.Size, torch.dtype], _Graph] = {}

    def __call__(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """See `Network`."""
        key = (x.shape, x.dtype)
        if key not in self._graphs:
            if len(self._graphs) >= MAX_GRAPHS:
                return self._network(x, timesteps)
            self._graphs[key] = _Graph(self._network, x, timesteps)
        return self._graphs[key](x, timesteps)


class _Graph:
    """One recorded call, with the buffers that it reads and writes."""

    def __init__(self, network: Network, x: Tensor, timesteps: Tensor) -> None:
        # Outside inference mode, whose tensors could not be written to later.
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device(x.device):
            self._x, self._timesteps = x.clone(), timesteps.clone()
            stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
            stream.wait_stream(current)
            with torch.cuda.stream(stream), _cudnn_benchmark():
                for _ in range(_CALLS_BEFORE_CAPTURE):
                    network(self._x, self._timesteps)
                self._graph = torch.cuda.CUDAGraph()
            current.wait_stream(stream)
            # thread_local: other threads may use the GPU meanwhile.
            recording = torch.cuda.graph(
                self._graph, stream=stream, capture_error_mode="thread_local"
            )
            with _cudnn_benchmark(), recording:
                self._output = network(self._x, self._timesteps)

    def __call__(self, x: Tensor, timesteps: Tensor) -> Tensor:
        self._x.copy_(x)
        self._timesteps.copy_(timesteps)
        self._graph.replay()
        return self._output.clone()  # the next replay writes over it


@contextmanager
def _cudnn_benchmark() -> Iterator[None]:
    """cuDNN times its algorithms for shapes that are new to it and keeps the fastest."""
    cudnn = torch.backends.cudnn
    before, cudnn.benchmark = cudnn.benchmark, True
    try:
        yield
    finally:
        cudnn.benchmark = before
