"""Faster calls of a network: equal results, and the plain call where they do not work."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch
import torch._inductor.config
from torch import Tensor

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.synthesis.denoisers.compiled import CudaGraphs, WithFallback, accelerate
from anomaly_detector_ros.synthesis.denoisers.loading import compiled, load_denoiser
from anomaly_detector_ros.synthesis.denoisers.onnx_export import export_denoiser

CPU = torch.device("cpu")
X = torch.linspace(-1, 1, 2 * 3 * 16 * 24).reshape(2, 3, 16, 24)
TIMESTEPS = torch.tensor([3, 700])

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="torch.compile needs a C++ compiler",
)


def plain(x: Tensor, timesteps: Tensor) -> Tensor:
    return x.sin() * timesteps.reshape(-1, 1, 1, 1)


def fallbacks(caplog: pytest.LogCaptureFixture) -> list[str]:
    """This package's log, without the compiler's own."""
    ours = [r for r in caplog.records if r.name.startswith("anomaly_detector_ros")]
    return [record.getMessage() for record in ours]


class Broken:
    """A faster form that fails, and how often it was tried."""

    def __init__(self) -> None:
        self.tried = 0

    def __call__(self, x: Tensor, timesteps: Tensor) -> Tensor:
        self.tried += 1
        raise RuntimeError("no such kernel\nand a long trace")


def test_a_failure_costs_one_warning_line(caplog: pytest.LogCaptureFixture) -> None:
    broken = Broken()
    network = WithFallback(broken, plain, "torch.compile")
    for _ in range(3):
        assert torch.equal(network(X, TIMESTEPS), plain(X, TIMESTEPS))
    assert broken.tried == 1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert "torch.compile failed (no such kernel" in message
    assert "runs without" in message
    assert "\n" not in message


def test_input_that_the_network_refuses_is_no_failure_of_the_faster_form(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def picky(x: Tensor, timesteps: Tensor) -> Tensor:
        if len(x) > 1:
            raise UserError("one image, please")
        return -plain(x, timesteps)

    network = WithFallback(picky, lambda x, t: -picky(x, t), "torch.compile")
    with pytest.raises(UserError, match="one image"):
        network(X, TIMESTEPS)
    assert not caplog.records
    assert torch.equal(network(X[:1], TIMESTEPS[:1]), -plain(X[:1], TIMESTEPS[:1]))


def test_gradients_come_from_the_plain_network() -> None:
    broken = Broken()
    x = X.clone().requires_grad_(True)
    output = WithFallback(broken, plain, "torch.compile")(x, TIMESTEPS)
    (gradient,) = torch.autograd.grad(output.sum(), x)
    torch.testing.assert_close(gradient, X.cos() * TIMESTEPS.reshape(-1, 1, 1, 1))
    assert broken.tried == 0


@pytest.mark.parametrize("mode", ["auto", "none", "graph"])
def test_the_cpu_runs_the_network_as_it_is(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    assert accelerate(plain, mode, CPU) is plain
    assert [r.getMessage() for r in caplog.records] == (
        ["denoiser: compile: graph needs a CUDA device: it runs without"] if mode == "graph" else []
    )


def test_unknown_mode_is_refused(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="unknown compile mode 'fast': choose one of auto, none"):
        compiled(load_denoiser(tiny_model), "fast")


def test_an_export_is_not_compiled(tiny_model: Path, tmp_path: Path) -> None:
    export_denoiser(tiny_model, tmp_path, size=(16, 24))
    exported = load_denoiser(tmp_path)
    assert compiled(exported, "auto") is exported
    with pytest.raises(UserError, match="exported to ONNX cannot have 'compile: graph'"):
        compiled(exported, "graph")


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without CUDA")
def test_capture_without_cuda_falls_back(caplog: pytest.LogCaptureFixture) -> None:
    network = WithFallback(CudaGraphs(plain), plain, "the capture of CUDA graphs")
    assert torch.equal(network(X, TIMESTEPS), plain(X, TIMESTEPS))
    assert "the capture of CUDA graphs failed" in caplog.text


@needs_compiler
def test_a_compiled_network_gives_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """A network of one line, as a compiler takes minutes for a U-Net on a busy core."""
    # By itself it would start processes that compile in parallel.
    alone = torch._inductor.config.patch(compile_threads=1)
    with alone, caplog.at_level(logging.WARNING, "anomaly_detector_ros"):
        faster = accelerate(plain, "compile", CPU)
        assert faster is not plain
        torch.testing.assert_close(faster(X, TIMESTEPS), plain(X, TIMESTEPS))
    assert fallbacks(caplog) == []


@needs_cuda
@pytest.mark.parametrize("mode", ["auto", "graph", "compile"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_give_the_same(
    tiny_model: Path, mode: str, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    denoiser = load_denoiser(tiny_model, device="cuda", dtype=dtype)
    exact = load_denoiser(tiny_model, device="cuda")
    faster = compiled(denoiser, mode)
    x = X.cuda()
    with torch.no_grad():
        for batch in (1, 2, 1):
            for t in (3, 700):
                expected = denoiser(x[:batch], t)
                kept = faster(x[:batch], t)
                faster(-x[:batch], 5)  # must not write over what was returned
                # In half precision a compiled network rounds elsewhere, not more.
                rounding = (expected - exact(x[:batch], t)).abs().max().item()
                assert (kept - exact(x[:batch], t)).abs().max().item() <= 0.02 + 1.5 * rounding
    assert fallbacks(caplog) == []


@needs_cuda
def test_graphs_of_the_first_shapes_only() -> None:
    graphs = CudaGraphs(plain)
    for width in range(1, 12):
        x = torch.rand(1, 3, 4, width, device="cuda")
        t = torch.ones(1, dtype=torch.int64, device="cuda")
        torch.testing.assert_close(graphs(x, t), plain(x, t))
