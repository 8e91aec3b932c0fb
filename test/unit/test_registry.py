"""The registry's promises: present, intact, or an error that says what to do."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.file_server import FileServer, Reply
from support.waiting import wait_until

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.weights.registry import FileEntry, ModelEntry, Registry, cache_directory
from anomaly_detector_ros.weights.sources import LocalSource, Source, UrlSource

BODY = b"weights" * 50_000


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as running:
        yield running


def file_entry(*sources: Source, name: str = "w.onnx", body: bytes = BODY) -> FileEntry:
    return FileEntry(name, len(body), hashlib.sha256(body).hexdigest(), sources)


def make_registry(folder: Path, *files: FileEntry, shipped: str | None = None) -> Registry:
    entry = ModelEntry("net", "A net", "MIT", "nowhere", files, shipped)
    return Registry({"net": entry}, folder / "root", folder / "cache")


def files_under(folder: Path) -> set[str]:
    """Names of visible files; the registry's own (lock, ledger) begin with a dot."""
    return {p.name for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")}


def test_unknown_name_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="choose one of net"):
        make_registry(tmp_path, file_entry()).path("nte")


def test_missing_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing: run `anomaly-detector models fetch net`"):
        make_registry(tmp_path, file_entry()).path("net")


def test_second_source_when_the_first_has_it_not(server: FileServer, tmp_path: Path) -> None:
    server.replies["/good"] = Reply(BODY)
    urls = [UrlSource(f"{server.address}/{path}") for path in ("gone", "good", "unused")]
    registry = make_registry(tmp_path, file_entry(*urls))
    directory = registry.fetch("net")
    assert (directory / "w.onnx").read_bytes() == BODY
    assert [path for path, _ in server.requests] == ["/gone", "/good"]
    assert registry.path("net", verify=True) == directory == tmp_path / "cache" / "net"


def test_second_source_when_the_first_has_another_file(server: FileServer, tmp_path: Path) -> None:
    server.replies["/wrong"] = Reply(BODY[::-1])
    server.replies["/good"] = Reply(BODY)
    urls = [UrlSource(f"{server.address}/{path}") for path in ("wrong", "good")]
    registry = make_registry(tmp_path, file_entry(*urls))
    assert (registry.fetch("net") / "w.onnx").read_bytes() == BODY


def test_error_names_model_file_each_answer_and_remedy(server: FileServer, tmp_path: Path) -> None:
    server.replies["/wrong"] = Reply(BODY[::-1])
    sources = [
        LocalSource(str(tmp_path / "absent")),
        UrlSource(f"{server.address}/gone"),
        UrlSource(f"{server.address}/wrong"),
    ]
    registry = make_registry(tmp_path, file_entry(*sources))
    with pytest.raises(UserError) as caught:
        registry.fetch("net")
    message = str(caught.value)
    wrong = hashlib.sha256(BODY[::-1]).hexdigest()
    for part in ("'net'", "w.onnx", "no such file", "HTTP 404", wrong, "check the connection"):
        assert part in message
    assert "\n" not in message
    assert files_under(tmp_path) == set()


def test_nobody_listens(tmp_path: Path) -> None:
    with FileServer() as gone:
        address = gone.address
    registry = make_registry(tmp_path, file_entry(UrlSource(f"{address}/f")))
    with pytest.raises(UserError, match="no connection"):
        registry.fetch("net")


def test_interrupted_fetch_keeps_its_partial(server: FileServer, tmp_path: Path) -> None:
    server.replies["/f"] = Reply(BODY)
    registry = make_registry(tmp_path, file_entry(UrlSource(f"{server.address}/f")))

    def interrupt(name: str, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        registry.fetch("net", progress=interrupt)
    assert files_under(tmp_path) == {"w.onnx.partial"}
    assert registry.verify("net")[0].state == "missing"
    registry.fetch("net")
    assert server.ranges()[-1].startswith("bytes=")
    assert files_under(tmp_path) == {"w.onnx"}


def test_offline_uses_local_copies_only(server: FileServer, tmp_path: Path) -> None:
    server.replies["/f"] = Reply(BODY)
    url = UrlSource(f"{server.address}/f")
    registry = make_registry(tmp_path, file_entry(url))
    with pytest.raises(UserError, match=r"cannot be had offline .*needs the network.*while online"):
        registry.fetch("net", offline=True)
    assert server.requests == []
    (tmp_path / "copy").write_bytes(BODY)
    local = make_registry(tmp_path, file_entry(url, LocalSource(str(tmp_path / "copy"))))
    assert (local.fetch("net", offline=True) / "w.onnx").read_bytes() == BODY
    assert registry.fetch("net", offline=True) == tmp_path / "cache" / "net"
    assert server.requests == []


def test_local_source_expands_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "copy").write_bytes(BODY)
    monkeypatch.setenv("WEIGHTS", str(tmp_path))
    registry = make_registry(tmp_path, file_entry(LocalSource("$WEIGHTS/copy")))
    assert (registry.fetch("net") / "w.onnx").read_bytes() == BODY


def test_altered_file_is_noticed_and_replaced(server: FileServer, tmp_path: Path) -> None:
    server.replies["/f"] = Reply(BODY)
    registry = make_registry(tmp_path, file_entry(UrlSource(f"{server.address}/f")))
    file = registry.fetch("net") / "w.onnx"
    before = file.stat()
    file.write_bytes(BODY[::-1])
    # Even with the size and the modification time of the true file.
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert registry.path("net") == file.parent
    wrong = hashlib.sha256(BODY[::-1]).hexdigest()
    with pytest.raises(UserError, match=rf"altered \(sha256 {wrong}\): run .* fetch net` to rep"):
        registry.path("net", verify=True)
    status = registry.verify("net")[0]
    assert (status.state, status.bytes, status.sha256) == ("altered", len(BODY), wrong)
    registry.fetch("net")
    assert file.read_bytes() == BODY
    assert registry.verify("net")[0].state == "ok"


def test_truncated_file_is_noticed_without_hashing(tmp_path: Path) -> None:
    (tmp_path / "copy").write_bytes(BODY)
    registry = make_registry(tmp_path, file_entry(LocalSource(str(tmp_path / "copy"))))
    file = registry.fetch("net") / "w.onnx"
    file.write_bytes(BODY[:-1])
    with pytest.raises(UserError, match=f"altered .{len(BODY) - 1} bytes"):
        registry.path("net")


def test_fetch_leaves_what_is_intact(server: FileServer, tmp_path: Path) -> None:
    server.replies["/a"] = Reply(BODY)
    server.replies["/b"] = Reply(BODY)
    files = [file_entry(UrlSource(f"{server.address}/{name}"), name=name) for name in "ab"]
    registry = make_registry(tmp_path, *files)
    directory = registry.fetch("net")
    (directory / "b").unlink()
    inode = (directory / "a").stat().st_ino
    registry.fetch("net")
    assert [path for path, _ in server.requests] == ["/a", "/b", "/b"]
    assert (directory / "a").stat().st_ino == inode


def test_hash_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    (tmp_path / "copy").write_bytes(BODY)
    registry = make_registry(tmp_path, file_entry(LocalSource(str(tmp_path / "copy"))))
    directory = registry.fetch("net")
    ledger = directory / ".verified.json"
    content = json.loads(ledger.read_text())
    content[str((directory / "w.onnx").resolve())]["sha256"] = "0" * 64
    ledger.write_text(json.dumps(content))
    with pytest.raises(UserError, match="0" * 64):
        registry.path("net", verify=True)
    (directory / "w.onnx").touch()
    assert registry.path("net", verify=True) == directory
    ledger.write_text("{ not json")
    assert registry.path("net", verify=True) == directory


def test_verify_hashes_whatever_is_remembered(tmp_path: Path) -> None:
    (tmp_path / "copy").write_bytes(BODY)
    registry = make_registry(tmp_path, file_entry(LocalSource(str(tmp_path / "copy"))))
    directory = registry.fetch("net")
    ledger = directory / ".verified.json"
    ledger.write_text(ledger.read_text().replace(hashlib.sha256(BODY).hexdigest(), "0" * 64))
    assert registry.verify("net")[0].state == "ok"
    assert registry.path("net", verify=True) == directory


def test_shipped_model(tmp_path: Path) -> None:
    files = [
        FileEntry("unet/config.json", None, None),
        file_entry(name="unet/weights.safetensors"),
    ]
    registry = make_registry(tmp_path, *files, shipped="net_dir")
    for call in (registry.path, registry.fetch):
        with pytest.raises(UserError, match="ships with this package: install the package again"):
            call("net")
    assert registry.verify("net")[0].state == "missing"
    unet = tmp_path / "root" / "net_dir" / "unet"
    unet.mkdir(parents=True)
    (unet / "config.json").write_text("{}")
    (unet / "weights.safetensors").write_bytes(BODY)
    assert registry.path("net", verify=True) == registry.fetch("net") == unet.parent
    # What is remembered lies in the cache: the installed package may be read-only.
    assert files_under(tmp_path / "root") == {"config.json", "weights.safetensors"}
    assert not list((tmp_path / "root").rglob(".*"))
    (unet / "weights.safetensors").write_bytes(BODY[::-1])
    with pytest.raises(UserError, match=r"altered .*install the package again"):
        registry.path("net", verify=True)


def test_two_processes_at_once_download_once(server: FileServer, tmp_path: Path) -> None:
    server.replies["/f"] = Reply(BODY, delay_s=0.03)
    registry = make_registry(tmp_path, file_entry(UrlSource(f"{server.address}/f")))
    first = threading.Thread(target=registry.fetch, args=("net",))
    first.start()
    wait_until(lambda: bool(server.requests))
    other = make_registry(tmp_path, file_entry(UrlSource(f"{server.address}/f")))
    assert (other.fetch("net") / "w.onnx").read_bytes() == BODY
    first.join()
    assert len(server.requests) == 1


def test_full_disk_says_so_and_leaves_nothing(server: FileServer, tmp_path: Path) -> None:
    server.replies["/f"] = Reply(BODY)
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from anomaly_detector_ros.errors import UserError\n"
        "from anomaly_detector_ros.weights.registry import FileEntry, ModelEntry, Registry\n"
        "from anomaly_detector_ros.weights.sources import UrlSource\n"
        "url, cache, size, sha256 = sys.argv[1:]\n"
        "file = FileEntry('w.onnx', int(size), sha256, (UrlSource(url),))\n"
        "entry = ModelEntry('net', 'A net', 'MIT', 'nowhere', (file,))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    Registry({'net': entry}, Path(cache), Path(cache)).fetch('net')\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    sha256 = hashlib.sha256(BODY).hexdigest()
    arguments = [f"{server.address}/f", str(tmp_path), str(len(BODY)), sha256]
    child = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert "no space left" in child.stdout
    assert "ANOMALY_DETECTOR_CACHE" in child.stdout
    assert files_under(tmp_path) == set()


def test_cache_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "copy").write_bytes(BODY)
    (tmp_path / "cache").write_text("not a directory")
    registry = make_registry(tmp_path, file_entry(LocalSource(str(tmp_path / "copy"))))
    with pytest.raises(UserError, match=r"cannot write in .*ANOMALY_DETECTOR_CACHE"):
        registry.fetch("net")


def test_cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANOMALY_DETECTOR_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "anomaly_detector_ros"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "anomaly_detector_ros"
    monkeypatch.setenv("ANOMALY_DETECTOR_CACHE", "~/own")
    assert cache_directory() == tmp_path / "own"
