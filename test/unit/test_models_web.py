"""Downloads over HTTP against a real server on the loopback address."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.file_server import FileServer, Reply
from support.waiting import wait_until

from anomaly_detector_ros.weights import web
from anomaly_detector_ros.weights.landing import Landing, SourceError, WrongContentError
from anomaly_detector_ros.weights.sources import GoogleDriveSource, HuggingFaceSource, Workspace

BODY = bytes(range(256)) * 4000


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as running:
        yield running


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "PAUSE_S", 0.02)


def make_landing(folder: Path, body: bytes = BODY) -> Landing:
    sha256 = hashlib.sha256(body).hexdigest()
    return Landing(folder / "weights.onnx", "weights.onnx", len(body), sha256)


def test_whole_file_and_progress(server: FileServer, tmp_path: Path) -> None:
    server.replies["/f"] = Reply(BODY)
    seen: list[tuple[str, int, int]] = []
    sha256 = hashlib.sha256(BODY).hexdigest()
    landing = Landing(tmp_path / "w", "w", len(BODY), sha256, lambda *step: seen.append(step))
    web.download(f"{server.address}/f", landing)
    assert landing.path.read_bytes() == BODY
    assert not landing.partial.exists()
    assert seen[-1] == ("w", len(BODY), len(BODY))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert len(seen) > 3


def test_broken_connection_goes_on_where_it_broke(server: FileServer, tmp_path: Path) -> None:
    server.replies["/f"] = Reply(BODY, cut=500_000)
    landing = make_landing(tmp_path)
    web.download(f"{server.address}/f", landing)
    assert landing.path.read_bytes() == BODY
    assert server.ranges() == ["", "bytes=500000-"]


def test_broken_connection_without_range_support_starts_over(
    server: FileServer, tmp_path: Path
) -> None:
    server.replies["/f"] = Reply(BODY, ranges=False, cut=500_000)
    landing = make_landing(tmp_path)
    web.download(f"{server.address}/f", landing)
    assert landing.path.read_bytes() == BODY
    assert server.ranges() == ["", "bytes=500000-"]


@pytest.mark.parametrize("ranges", [True, False])
def test_killed_process_resumes(server: FileServer, tmp_path: Path, ranges: bool) -> None:
    server.replies["/f"] = Reply(BODY, ranges=ranges, delay_s=0.05)
    landing = make_landing(tmp_path)
    code = (
        "import sys; from pathlib import Path\n"
        "from anomaly_detector_ros.weights import web\n"
        "from anomaly_detector_ros.weights.landing import Landing\n"
        "url, path, size, sha256 = sys.argv[1:]\n"
        "web.download(url, Landing(Path(path), 'w', int(size), sha256))\n"
    )
    arguments = [f"{server.address}/f", str(landing.path), str(landing.size), landing.sha256]
    child = subprocess.Popen([sys.executable, "-c", code, *arguments])
    try:
        wait_until(lambda: landing.partial.exists() and landing.partial.stat().st_size > 0)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    kept = landing.partial.stat().st_size
    assert 0 < kept < len(BODY)
    assert not landing.path.exists()
    server.replies["/f"].delay_s = 0.0
    web.download(f"{server.address}/f", landing)
    assert landing.path.read_bytes() == BODY
    assert server.ranges()[-1] == f"bytes={kept}-"


def test_killed_before_the_rename_asks_for_nothing(server: FileServer, tmp_path: Path) -> None:
    landing = make_landing(tmp_path)
    landing.partial.write_bytes(BODY)
    web.download(f"{server.address}/f", landing)
    assert landing.path.read_bytes() == BODY
    assert server.requests == []


@pytest.mark.parametrize("length", [1000, len(BODY), len(BODY) + 1])
def test_partial_of_another_file_is_thrown_away(
    server: FileServer, tmp_path: Path, length: int
) -> None:
    server.replies["/f"] = Reply(BODY)
    landing = make_landing(tmp_path)
    landing.partial.write_bytes(b"x" * length)
    web.download(f"{server.address}/f", landing)
    assert landing.path.read_bytes() == BODY
    assert server.ranges()[-1] == ""


def test_wrong_hash_leaves_nothing(server: FileServer, tmp_path: Path) -> None:
    wrong = b"y" + BODY[1:]
    server.replies["/f"] = Reply(wrong)
    landing = make_landing(tmp_path)
    with pytest.raises(WrongContentError, match=hashlib.sha256(wrong).hexdigest()):
        web.download(f"{server.address}/f", landing)
    assert list(tmp_path.iterdir()) == []
    assert len(server.requests) == 1


@pytest.mark.parametrize("unannounced", [True, False])
def test_longer_than_declared_is_refused(
    server: FileServer, tmp_path: Path, unannounced: bool
) -> None:
    server.replies["/f"] = Reply(BODY + b"z" * 5_000_000, unannounced=unannounced)
    landing = make_landing(tmp_path)
    with pytest.raises(WrongContentError, match="more than the"):
        web.download(f"{server.address}/f", landing)
    assert list(tmp_path.iterdir()) == []


def test_busy_server_is_asked_again(server: FileServer, tmp_path: Path) -> None:
    server.replies["/f"] = Reply(b"", status=503)
    landing = make_landing(tmp_path)
    with pytest.raises(SourceError, match="HTTP 503"):
        web.download(f"{server.address}/f", landing)
    assert len(server.requests) == web.ATTEMPTS


def test_dropped_connection_is_made_again(server: FileServer, tmp_path: Path) -> None:
    server.replies["/f"] = Reply(BODY, drops=web.ATTEMPTS - 1)
    landing = make_landing(tmp_path)
    web.download(f"{server.address}/f", landing)
    assert landing.path.read_bytes() == BODY
    assert len(server.requests) == web.ATTEMPTS


def test_connection_that_is_always_dropped_is_given_up(server: FileServer, tmp_path: Path) -> None:
    server.replies["/f"] = Reply(BODY, drops=100)
    with pytest.raises(SourceError, match="no connection"):
        web.download(f"{server.address}/f", make_landing(tmp_path))
    assert len(server.requests) == web.ATTEMPTS


def test_server_that_starts_late_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "PAUSE_S", 0.5)
    late = FileServer()
    late.replies["/f"] = Reply(BODY)
    with late:
        pass
    landing = make_landing(tmp_path)
    waiting = threading.Thread(target=web.download, args=(f"{late.address}/f", landing))
    waiting.start()
    time.sleep(0.1)  # the first try is refused
    again = FileServer(late.port)
    again.replies = late.replies
    with again:
        waiting.join()
    assert landing.path.read_bytes() == BODY


def test_google_drive_page_is_asked_for_again(server: FileServer, tmp_path: Path) -> None:
    server.replies["/uc"] = Reply(BODY, drops=1)
    landing = make_landing(tmp_path)
    with Workspace(tmp_path) as workspace:
        GoogleDriveSource("abc", f"{server.address}/uc").deliver(landing, workspace)
    assert landing.path.read_bytes() == BODY


def test_redirect_is_followed_without_the_token(server: FileServer, tmp_path: Path) -> None:
    with FileServer() as other:
        other.replies["/g"] = Reply(BODY)
        location = {"Location": f"{other.address}/g"}
        server.replies["/f"] = Reply(b"", status=302, headers=location)
        landing = make_landing(tmp_path)
        headers = {"Authorization": "Bearer secret"}
        web.download(f"{server.address}/f", landing, headers=headers)
        assert landing.path.read_bytes() == BODY
        assert server.requests[0][1]["authorization"] == "Bearer secret"
        assert "authorization" not in other.requests[0][1]


@pytest.mark.parametrize("address", ["file:///etc/hostname", "ftp://127.0.0.1/f"])
def test_only_http(tmp_path: Path, address: str) -> None:
    with pytest.raises(SourceError, match="no connection"):
        web.download(address, make_landing(tmp_path))


def test_google_drive_confirms_a_large_file(server: FileServer, tmp_path: Path) -> None:
    page = (
        '<html><title>Virus scan warning</title><form action="/elsewhere"></form>'
        '<form id="download-form" action="/download" method="get">'
        '<input type="submit" value="Download anyway"/>'
        '<input type="hidden" name="id" value="abc"><input type="hidden" name="confirm" value="t">'
        '<input type="hidden" name="uuid" value="1-2"></form></html>'
    )
    server.replies["/uc?export=download&id=abc"] = Reply(
        page.encode(), content_type="text/html; charset=utf-8", headers={"Set-Cookie": "nid=7"}
    )
    server.replies["/download?id=abc&confirm=t&uuid=1-2"] = Reply(BODY, cut=300_000)
    landing = make_landing(tmp_path)
    with Workspace(tmp_path) as workspace:
        GoogleDriveSource("abc", f"{server.address}/uc").deliver(landing, workspace)
    assert landing.path.read_bytes() == BODY
    assert server.ranges() == ["", "", "bytes=300000-"]
    assert server.requests[1][1]["cookie"] == "nid=7"


def test_google_drive_sends_a_small_file_at_once(server: FileServer, tmp_path: Path) -> None:
    server.replies["/uc?export=download&id=abc"] = Reply(BODY)
    landing = make_landing(tmp_path)
    with Workspace(tmp_path) as workspace:
        GoogleDriveSource("abc", f"{server.address}/uc").deliver(landing, workspace)
    assert landing.path.read_bytes() == BODY


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("<p>Quota exceeded</p>", "tomorrow"),
        ("<p>Sign in</p>", "is it public"),
        ('<form id="download-form" action="http://127.0.0.2/x"></form>', "foreign host"),
    ],
)
def test_google_drive_pages_that_are_no_file(
    server: FileServer, tmp_path: Path, page: str, message: str
) -> None:
    server.replies["/uc"] = Reply(page.encode(), content_type="text/html")
    source = GoogleDriveSource("abc", f"{server.address}/uc")
    with Workspace(tmp_path) as workspace, pytest.raises(SourceError, match=message):
        source.deliver(make_landing(tmp_path), workspace)
    assert list(tmp_path.iterdir()) == []


def test_hugging_face_downloads_by_repository_and_revision(
    server: FileServer, tmp_path: Path
) -> None:
    server.replies["/owner/name/resolve/v2/sub/weights.onnx"] = Reply(BODY, cut=200_000)
    landing = make_landing(tmp_path)
    source = HuggingFaceSource("owner/name", "sub/weights.onnx", "v2", server.address)
    with Workspace(tmp_path) as workspace:
        source.deliver(landing, workspace)
    assert landing.path.read_bytes() == BODY
    assert server.ranges() == ["", "bytes=200000-"]


def test_hugging_face_gated_repository_names_the_remedy(server: FileServer, tmp_path: Path) -> None:
    server.replies["/owner/name/resolve/main/f"] = Reply(b"", status=403)
    source = HuggingFaceSource("owner/name", "f", endpoint=server.address)
    with Workspace(tmp_path) as workspace, pytest.raises(SourceError, match="HTTP 403") as caught:
        source.deliver(make_landing(tmp_path), workspace)
    assert "licence of owner/name" in caught.value.remedy


def test_full_disk_in_a_file_system_of_its_own(server: FileServer, tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root; the file-size limit is tested elsewhere")
    try:
        server.replies["/f"] = Reply(BODY)
        with pytest.raises(OSError, match="No space left"):
            web.download(f"{server.address}/f", make_landing(mount))
        assert list(mount.iterdir()) == []
    finally:
        subprocess.run(["umount", str(mount)], check=True)
