"""Which precision a device is good at, and how many cores there are for this process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from anomaly_detector_ros.runtime import devices
from anomaly_detector_ros.runtime.devices import available_cores, choose_device, choose_dtype
from anomaly_detector_ros.runtime.tensors import to_device

CPU = torch.device("cpu")
HERE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def cpu_max(folder: Path, text: str) -> Path:
    (folder / "cpu.max").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("100000 100000\n", 1),
        ("50000 100000\n", 1),
        ("max 100000\n", HERE),
        (f"{HERE + 7}00000 100000\n", HERE),
        ("100000 0\n", HERE),
        ("", HERE),
    ],
)
def test_a_container_bounds_the_cores(tmp_path: Path, text: str, cores: int) -> None:
    assert available_cores(cpu_max(tmp_path, text)) == cores


@pytest.mark.parametrize(("quota", "cores"), [("100000", 1), ("-1", HERE)])
def test_an_older_container_bounds_the_cores(tmp_path: Path, quota: str, cores: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert available_cores(tmp_path) == cores


def test_no_container_no_bound(tmp_path: Path) -> None:
    assert available_cores(tmp_path / "none") == HERE


def test_a_share_of_a_core_counts_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert available_cores(cpu_max(tmp_path, "250000 100000")) == 3


def test_torch_has_no_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        monkeypatch.setattr(devices, "available_cores", lambda: 3)
        choose_device("cpu")
        assert torch.get_num_threads() == 3
        torch.set_num_threads(2)
        choose_device("cpu")
        assert torch.get_num_threads() == 2, "fewer threads were asked for"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("fpu avx2 avx512f avx512_bf16", torch.bfloat16),
        ("fpu amx_bf16", torch.bfloat16),
        ("fp asimd bf16", torch.bfloat16),
        ("fpu avx2 avx512f", torch.float32),
        ("", torch.float32),
    ],
)
def test_precision_of_a_processor(
    monkeypatch: pytest.MonkeyPatch, flags: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(devices, "cpu_flags", lambda: set(flags.split()))
    assert choose_dtype("auto", CPU) is dtype
    assert choose_dtype("float16", CPU) is torch.float16


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [
        ((9, 0), torch.bfloat16),
        ((8, 7), torch.bfloat16),
        ((7, 5), torch.float16),
        ((7, 2), torch.float16),
        ((6, 1), torch.float32),
    ],
)
def test_precision_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_dtype("auto", torch.device("cuda:0")) is dtype


def test_flags_are_whole_words_of_this_processor() -> None:
    if Path("/proc/cpuinfo").is_file():
        assert {"fpu", "asimd", "fp"} & devices.cpu_flags()


def test_a_tensor_stays_where_it_is() -> None:
    tensor = torch.ones(3)
    assert to_device(tensor, "cpu") is tensor


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_tensor_arrives_whole() -> None:
    tensor = torch.arange(1_000_000)
    assert torch.equal(to_device(tensor, "cuda").cpu(), tensor)
