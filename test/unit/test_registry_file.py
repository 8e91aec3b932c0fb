"""The registry file: the one of this repository, and what is refused in others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.synthesis.denoisers.loading import DenoiserSettings
from anomaly_detector_ros.weights.entries import load_entries
from anomaly_detector_ros.weights.loading import Loader
from anomaly_detector_ros.weights.registry import Registry
from anomaly_detector_ros.weights.sources import HuggingFaceSource, LocalSource

REGISTRY = Path(__file__).resolve().parents[2] / "models" / "registry.yaml"
SHA256 = "0123456789abcdef" * 4


def write(folder: Path, sources: object = None, **changes: object) -> Path:
    file = {"name": "w.onnx", "bytes": 3, "sha256": SHA256}
    file["sources"] = [{"url": "https://host.invalid/w"}] if sources is None else sources
    file.update({key: changes.pop(key) for key in ("name", "bytes", "sha256") if key in changes})
    model = {"title": "A net", "licence": "MIT", "project": "nowhere", "files": [file], **changes}
    path = folder / "registry.yaml"
    path.write_text(yaml.safe_dump({"models": {"net": model}}))
    return path


def test_repository_registry_is_complete() -> None:
    entries = load_entries(REGISTRY)
    assert {"mobile_sam", "dinov2_vits14_focus", "offroad_small"} <= set(entries)
    for entry in entries.values():
        assert entry.title
        assert entry.licence
        assert entry.project
        for file in entry.files:
            if entry.shipped or entry.by_hand:
                continue
            assert file.sources
            assert re.fullmatch("[0-9a-f]{64}", file.sha256 or "")
            assert (file.bytes or 0) > 0


def test_repository_shipped_models_are_intact_and_declared(tmp_path: Path) -> None:
    """A directory that is there must be whole, and each of its files declared."""
    registry = Registry.from_file(REGISTRY, tmp_path)
    for name in registry.names():
        entry = registry.entry(name)
        if entry.shipped is None or not registry.directory(name).is_dir():
            continue
        assert all(file.sha256 and file.bytes for file in entry.files), f"{name}: fill the registry"
        assert [file.state for file in registry.verify(name)] == ["ok"] * len(entry.files)


def test_every_kind_of_source(tmp_path: Path) -> None:
    sources = [
        {"local": "weights/w.onnx"},
        {"local": "~/w.onnx"},
        {"huggingface": {"repo": "owner/name", "file": "w.onnx", "revision": "v1"}},
        {"url": "http://host.invalid/w"},
        {"google_drive": "abc"},
        {"python": {"package": "p==1", "file": "p/w.onnx", "archive_bytes": 10}},
        {"npm": {"package": "p@1.0.0", "file": "dist/w.onnx", "archive_bytes": 10}},
    ]
    parsed = load_entries(write(tmp_path, sources))["net"].files[0].sources
    assert parsed[0] == LocalSource(str(tmp_path / "weights/w.onnx"))
    assert parsed[1] == LocalSource("~/w.onnx")
    assert parsed[2] == HuggingFaceSource("owner/name", "w.onnx", "v1")
    assert len({source.describe() for source in parsed}) == len(sources)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"licence": ""}, "licence"),
        ({"licences": "MIT"}, "no setting 'licences' .did you mean 'licence'"),
        ({"files": []}, "at least 1 item"),
        ({"name": "../w.onnx"}, r"without \.\."),
        ({"name": "/etc/w.onnx"}, "relative"),
        ({"bytes": "3"}, "bytes"),
        ({"bytes": -3}, "bytes"),
        ({"bytes": True}, "bytes"),
        ({"sha256": SHA256[1:]}, "64 lower-case hex"),
        ({"sha256": None}, "lacks `bytes` or `sha256`"),
        ({"sources": []}, "sources"),
        ({"sources": [{"ftp": "x"}]}, "unknown kind of source 'ftp'"),
        ({"sources": [{"url": "https://host.invalid/w", "local": "w"}]}, "one key, its kind"),
        ({"sources": [{}]}, "one key, its kind"),
        ({"sources": [{"url": "file:///etc/hostname"}]}, "http or https"),
        ({"sources": [{"python": {"package": "p", "file": "p/w"}}]}, "archive_bytes"),
        (
            {"sources": [{"python": {"package": "-rx", "file": "w", "archive_bytes": 1}}]},
            "package",
        ),
        (
            {"sources": [{"npm": {"package": "p", "file": "../w", "archive_bytes": 1}}]},
            r"without \.\.",
        ),
        ({"shipped": "../elsewhere", "sources": []}, r"without \.\."),
        ({"shipped": "here"}, "empty only for a shipped or by_hand model"),
    ],
)
def test_bad_entries_are_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(UserError, match=message) as caught:
        load_entries(path)
    assert str(caught.value).startswith(f"{path}: model 'net'")
    assert "\n" not in str(caught.value)


def test_a_model_that_users_provide(tmp_path: Path) -> None:
    text = yaml.safe_load(write(tmp_path, by_hand="convert it").read_text())
    text["models"]["net"]["files"] = [{"name": "config.json"}]
    (tmp_path / "registry.yaml").write_text(yaml.safe_dump(text))
    registry = Registry.from_file(tmp_path / "registry.yaml", tmp_path / "cache")
    for offline in (True, False):
        with pytest.raises(UserError, match=r"config\.json is missing: convert it"):
            registry.fetch("net", offline=offline)
    registry.directory("net").mkdir(parents=True)
    (registry.directory("net") / "config.json").write_text("{}")
    assert registry.fetch("net") == registry.directory("net")
    # Undeclared, so what is computed from it is told apart by what the file holds.
    settings, loader = DenoiserSettings("net", (8, 8)), Loader(registry, torch.device("cpu"))
    first = settings.sha256(loader)
    (registry.directory("net") / "config.json").write_text("{} ")
    assert settings.sha256(loader) != first


def test_unreadable_registry(tmp_path: Path) -> None:
    path = tmp_path / "registry.yaml"
    with pytest.raises(UserError, match="No such file"):
        load_entries(path)
    path.write_text("models: [")
    with pytest.raises(UserError, match="not valid YAML"):
        load_entries(path)
    path.write_text("- a list")
    with pytest.raises(UserError, match="no mapping `models`"):
        load_entries(path)
