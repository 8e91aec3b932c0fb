"""Faults of servers, disks and processes while ``models fetch`` works."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from bench import small_disk
from command_process import ONE_LINE, command, ended, refused
from fault import Fault, expect
from support.file_server import FileServer, Reply
from support.waiting import wait_until

if TYPE_CHECKING:
    from bench import Bench

ROOT = Path(__file__).resolve().parents[2]
SIZE = 4_000_000


def installation(bench: Bench, address: str) -> dict[str, Any]:
    """A copy of the package whose registry names a server on this machine; Popen's arguments."""
    root = bench.folder / "installed"
    shutil.rmtree(root, ignore_errors=True)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "anomaly_detector_ros", root / "anomaly_detector_ros", ignore=ignore)
    shutil.copy(ROOT / "package.xml", root)
    (root / "models").mkdir()
    shutil.copy(ROOT / "models" / "profiles.yaml", root / "models")
    weights = served_bytes()
    file = {"name": "weights.onnx", "bytes": SIZE, "sha256": hashlib.sha256(weights).hexdigest(),
            "sources": [{"url": f"{address}/weights.onnx"}]}  # fmt: skip
    entry = {"title": "t", "licence": "MIT", "project": "p", "files": [file]}
    (root / "models" / "registry.yaml").write_text(yaml.safe_dump({"models": {"served": entry}}))
    environment = {**bench.environment, "PYTHONPATH": str(root), "no_proxy": "127.0.0.1",
                   "ANOMALY_DETECTOR_CACHE": str(bench.folder / "fetched")}  # fmt: skip
    return {"env": environment, "cwd": root}


def served_bytes() -> bytes:
    return np.random.default_rng(3).integers(0, 256, SIZE, np.uint8).tobytes()


def fetch(bench: Bench, fault: Callable[[Bench, FileServer, dict[str, Any]], str]) -> str:
    shutil.rmtree(bench.folder / "fetched", ignore_errors=True)
    with FileServer() as server:
        server.replies["/weights.onnx"] = Reply(served_bytes())
        return fault(bench, server, installation(bench, server.address))


def fetched_well(bench: Bench, place: dict[str, Any]) -> None:
    code, line = ended(command(bench, "models", "fetch", "served", **place))
    expect(code == 0, f"exit code {code}: {line}")
    file = bench.folder / "fetched" / "served" / "weights.onnx"
    expect(file.read_bytes() == served_bytes(), "other bytes than the server's")


def fetch_again(bench: Bench) -> None:
    """Recovery: fetched from a good server, going on from what is there."""
    with FileServer() as server:
        server.replies["/weights.onnx"] = Reply(served_bytes())
        fetched_well(bench, installation(bench, server.address))


def server_cut(bench: Bench, server: FileServer, place: dict[str, Any]) -> str:
    server.replies["/weights.onnx"].cut = SIZE // 3
    fetched_well(bench, place)
    expect(any(server.ranges()), "no range was asked for")
    return f"went on by itself, asked for {server.ranges()[-1]}; bytes right"


def fetch_killed(bench: Bench, server: FileServer, place: dict[str, Any]) -> str:
    server.replies["/weights.onnx"] = Reply(served_bytes(), delay_s=0.02)
    process = command(bench, "models", "fetch", "served", **place)
    folder = bench.folder / "fetched" / "served"
    partial = folder / "weights.onnx.partial"
    wait_until(lambda: partial.is_file() and partial.stat().st_size, "a partial file", 100)
    process.kill()
    process.communicate()
    expect(not (folder / "weights.onnx").exists(), "a file under its final name")
    kept = partial.stat().st_size
    server.replies["/weights.onnx"] = Reply(served_bytes())
    fetched_well(bench, place)
    expect(server.ranges()[-1] == f"bytes={kept}-", f"asked for {server.ranges()[-1] or 'all'}")
    return f"nothing under the final name; then asked for {server.ranges()[-1]}; bytes right"


def wrong_content(bench: Bench, server: FileServer, place: dict[str, Any]) -> str:
    server.replies["/weights.onnx"] = Reply(bytes(SIZE))
    happened = refused(bench, command(bench, "models", "fetch", "served", **place), "sha256")
    expect(not list((bench.folder / "fetched" / "served").glob("weights*")), "a file was left")
    return f"nothing left; {happened}"


def fetch_full_disk(bench: Bench, server: FileServer, place: dict[str, Any]) -> str:
    cache = bench.folder / "fetched"
    cache.mkdir(exist_ok=True)
    prefix = small_disk(cache, 1000)
    return refused(
        bench, command(bench, "models", "fetch", "served", prefix=prefix, **place), "space"
    )


def _fetch(name: str, injected: str, expected: str, act: Any) -> Fault:
    return Fault("commands", name, injected, expected, lambda bench: fetch(bench, act),
                 fetch_again, needs_node=False)  # fmt: skip


FAULTS = [
    _fetch("server_cut", "`models fetch`, connection cut after a third",
           "goes on from there by itself", server_cut),
    _fetch("fetch_killed", "`models fetch` and SIGKILL, then again",
           "nothing under the final name; goes on from there", fetch_killed),
    _fetch("wrong_content", "`models fetch` of a file with other bytes", ONE_LINE, wrong_content),
    _fetch("fetch_full_disk", "`models fetch` to a disk of 1 MB", ONE_LINE, fetch_full_disk),
]  # fmt: skip
