"""`anomaly-detector models`, run on a registry in a temporary directory."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from anomaly_detector_ros.cli.models import app
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.weights.registry import Registry

BODY = b"weights" * 1000
runner = CliRunner()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The local file that model `net` comes from; the default registry knows only that model."""
    path = tmp_path / "w.onnx"
    path.write_bytes(BODY)
    file = {
        "name": "w.onnx",
        "bytes": len(BODY),
        "sha256": hashlib.sha256(BODY).hexdigest(),
        "sources": [{"local": "w.onnx"}],
    }
    model = {"title": "A net", "licence": "MIT", "project": "nowhere", "files": [file]}
    registry = tmp_path / "registry.yaml"
    registry.write_text(yaml.safe_dump({"models": {"net": model}}))
    cache = tmp_path / "cache"
    monkeypatch.setattr(
        Registry, "default", classmethod(lambda cls: cls.from_file(registry, cache))
    )
    return path


def listed() -> dict[str, object]:
    result = runner.invoke(app, ["list", "--json"])
    assert result.exit_code == 0
    return json.loads(result.stdout)[0]


def test_list_fetch_verify(source: Path) -> None:
    assert listed()["state"] == "absent"
    result = runner.invoke(app, ["fetch", "net", "--json"])
    assert result.exit_code == 0
    fetched = Path(json.loads(result.stdout)[0]["path"]) / "w.onnx"
    assert fetched.read_bytes() == BODY
    row = listed()
    assert (row["state"], row["licence"], row["bytes"]) == ("present", "MIT", len(BODY))
    result = runner.invoke(app, ["verify", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)[0]["state"] == "ok"


def test_tables_for_people(source: Path) -> None:
    assert "absent" in runner.invoke(app, ["list"]).stdout
    assert "net: " in runner.invoke(app, ["fetch", "net", "--offline"]).stdout
    assert "ok" in runner.invoke(app, ["verify", "net"]).stdout


def test_verify_fails_on_an_altered_file(source: Path, tmp_path: Path) -> None:
    runner.invoke(app, ["fetch", "net"])
    (tmp_path / "cache" / "net" / "w.onnx").write_bytes(BODY[::-1])
    result = runner.invoke(app, ["verify", "--json"])
    assert result.exit_code != 0
    assert isinstance(result.exception, UserError)
    assert "models fetch net" in str(result.exception)
    assert json.loads(result.stdout)[0]["state"] == "altered"


def test_verify_with_nothing_here(source: Path) -> None:
    result = runner.invoke(app, ["verify"])
    assert result.exit_code != 0
    assert "no model is here yet" in str(result.exception)


def test_fetch_failure_is_one_line(source: Path) -> None:
    source.unlink()
    result = runner.invoke(app, ["fetch", "net"])
    assert result.exit_code != 0
    assert isinstance(result.exception, UserError)
    assert "\n" not in str(result.exception)


def test_fetch_without_names_takes_those_of_the_profile(
    source: Path, light_profile: str, tmp_path: Path
) -> None:
    profile = yaml.safe_load(Path(light_profile).read_text())
    profile["light_test"]["denoiser"]["model"] = "net"
    path = tmp_path / "profile.yaml"
    path.write_text(yaml.safe_dump(profile))
    result = runner.invoke(app, ["fetch", "--profile", str(path), "--json"])
    assert [row["name"] for row in json.loads(result.stdout)] == ["net"]
    shutil.rmtree(tmp_path / "cache")
    assert listed()["state"] == "absent"


@pytest.mark.parametrize("command", ["list", "fetch", "verify"])
def test_help_has_an_example(command: str) -> None:
    result = runner.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Example: anomaly-detector models" in result.stdout
