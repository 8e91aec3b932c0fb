"""What the package never does: run what a file holds, start a shell, trust a stranger."""

from __future__ import annotations

import ast
import hashlib
import http.server
import shutil
import ssl
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from anomaly_detector_ros.weights.landing import Landing, SourceError
from anomaly_detector_ros.weights.packages import land_tar_member, land_wheel_member
from anomaly_detector_ros.weights.web import download, make_opener

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path for folder in ("anomaly_detector_ros", "launch") for path in (ROOT / folder).rglob("*.py")
)
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# What they are called by, after names such as `np` have been resolved to their modules.
FORBIDDEN = {
    "eval", "exec", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput",
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "tempfile.mktemp",
    "pandas.read_pickle", "ssl._create_unverified_context", "torch.jit.load", "torch.hub.load",
    "shutil.unpack_archive",
}  # fmt: skip
CONTENT = b"weights" * 9
EVIL = ["/tmp/escaped", "../escaped", "package/../../escaped", "package/weights.bin"]


def offences(source: str) -> list[str]:
    """What is forbidden in Python source, with its line."""
    tree = ast.parse(source)
    modules: dict[str, str] = {}
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                modules[name.asname or name.name] = name.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                modules[name.asname or name.name] = f"{node.module}.{name.name}"
    # `pickle` may be imported for the errors of torch's own reader, and for nothing else.
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found += [f"line {node.lineno}: {text}" for text in _call(node, modules)]
        elif isinstance(node, ast.Attribute):
            name = _name(node, modules)
            if name.partition(".")[0] in PICKLES and name != "pickle.UnpicklingError":
                found.append(f"line {node.lineno}: {name}")
            if name == "ssl.CERT_NONE":
                found.append(f"line {node.lineno}: {name}")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PICKLES:
            found.append(f"line {node.lineno}: from {node.module}")
    return found


def _call(node: ast.Call, modules: dict[str, str]) -> Iterator[str]:
    name = _name(node.func, modules)
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    if name in FORBIDDEN:
        yield name
    if "shell" in given and not _is(given["shell"], False):
        yield "shell="
    if name == "torch.load" and not _is(given.get("weights_only"), True):
        yield "torch.load without weights_only=True"
    if name in ("numpy.load", "np.load") and not _is(given.get("allow_pickle"), False):
        yield "numpy.load without allow_pickle=False"
    if _is(given.get("trust_remote_code"), True) or _is(given.get("verify"), False):
        yield "trust_remote_code or verify=False"
    if name.endswith(".extractall"):
        yield name


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _name(node: ast.expr, modules: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return modules.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value, modules)}.{node.attr}"
    return ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_sources(path: Path) -> None:
    assert offences(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.loads(b'')",
        "from pickle import loads",
        "import pickle as p\np.load(f)",
        "import torch\ntorch.load(f)",
        "import torch\ntorch.load(f, weights_only=False)",
        "from torch import load\nload(f)",
        "import numpy as np\nnp.load(f)",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "from os import system\nsystem('ls')",
        "import yaml\nyaml.load(f, Loader=x)",
        "eval('1')",
        "exec('1')",
        "archive.extractall(folder)",
        "import ssl\ncontext.verify_mode = ssl.CERT_NONE",
        "requests.get(u, verify=False)",
    ],
)
def test_offences_are_found(source: str) -> None:
    assert offences(source)


def test_sources_were_looked_at() -> None:
    assert len(SOURCES) > 100


def landing(folder: Path) -> Landing:
    digest = hashlib.sha256(CONTENT).hexdigest()
    return Landing(folder / "landed", "weights.bin", len(CONTENT), digest)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", ["/etc/passwd", "../../secret", "package/other"])
def test_links_in_tarballs_are_not_followed(tmp_path: Path, kind: bytes, target: str) -> None:
    (tmp_path / "secret").write_bytes(CONTENT)
    with tarfile.open(tmp_path / "p.tgz", "w:gz") as archive:
        info = tarfile.TarInfo("package/weights.bin")
        info.type, info.linkname, info.size = kind, target, 0
        archive.addfile(info)
    with pytest.raises(SourceError, match="not a regular file"):
        land_tar_member(tmp_path / "p.tgz", "package/weights.bin", landing(tmp_path))
    assert not (tmp_path / "landed").exists()


def test_members_with_evil_names_are_never_written(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "weights.bin").write_bytes(CONTENT)
    with tarfile.open(inside / "p.tgz", "w:gz") as archive:
        for name in EVIL:
            archive.add(inside / "weights.bin", name)
    with zipfile.ZipFile(inside / "p.whl", "w") as package:
        for name in EVIL:
            package.writestr(name, CONTENT)
    land_tar_member(inside / "p.tgz", EVIL[-1], landing(inside))
    land_wheel_member(inside / "p.whl", EVIL[-1], landing(inside))
    assert sorted(p.name for p in inside.iterdir()) == ["landed", "p.tgz", "p.whl", "weights.bin"]
    assert [p.name for p in tmp_path.iterdir()] == ["inside"]
    assert not Path("/tmp/escaped").exists()


# -- TLS -------------------------------------------------------------------------------------------


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[str]:
    """Address of an HTTPS server with a certificate that nobody signed."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "file").write_bytes(CONTENT)
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert")]
    subprocess.run(command, check=True, capture_output=True)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path / "www"))  # type: ignore[arg-type]

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"https://localhost:{server.server_address[1]}/file"
    server.shutdown()
    server.server_close()


def test_a_certificate_that_nobody_signed_is_refused(
    stranger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "localhost")
    with pytest.raises(SourceError, match=r"no connection.*CERTIFICATE_VERIFY_FAILED"):
        download(stranger, landing(tmp_path))
    assert not (tmp_path / "landed").exists()
    # The same server is fine once its certificate is known: it was the certificate.
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert"))
    download(stranger, landing(tmp_path), opener=make_opener())
    assert (tmp_path / "landed").read_bytes() == CONTENT
