"""A release: one version everywhere, and a wheel that works away from the checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from anomaly_detector_ros import __version__

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = (".safetensors", ".jpg", ".png")
"""Large files whose content plays no part here."""

pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(), reason="not a source checkout"
)


def test_one_version_everywhere() -> None:
    headings = re.findall(r"^## (\d\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    in_xml = re.search(r"<version>(.+)</version>", (ROOT / "package.xml").read_text())[1]
    in_citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    assert {headings[0], in_xml, in_citation} == {__version__}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the checkout in which pictures and weights are empty files."""
    source = tmp_path_factory.mktemp("release") / "source"
    source.mkdir()
    for name in ("anomaly_detector_ros", "config", "demo", "launch", "models"):
        for file in (ROOT / name).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                copy = source / file.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.touch() if file.suffix in WEIGHTS else shutil.copy(file, copy)
    for name in ("resource", "scripts"):
        shutil.copytree(ROOT / name, source / name)
    for name in (
        "LICENSE",
        "MANIFEST.in",
        "README.md",
        "package.xml",
        "pyproject.toml",
        "setup.py",
    ):
        shutil.copy(ROOT / name, source)
    build = "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-c", build, source.parent], cwd=source, check=True, capture_output=True
    )
    (built,) = source.parent.glob("*.whl")
    return built


def test_the_wheel_holds_what_is_needed_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
    info, data = (f"anomaly_detector_ros-{__version__}.{end}/" for end in ("dist-info", "data"))
    share = f"{data}data/share/anomaly_detector_ros/"
    code = {n for n in names if n.startswith("anomaly_detector_ros/")}
    shared = {n.removeprefix(share) for n in names if n.startswith(share)}
    others = {n for n in code if not n.endswith(".py")}
    pages = {f"anomaly_detector_ros/pages/page.{kind}" for kind in ("css", "html", "js")}
    assert others == {"anomaly_detector_ros/py.typed", *pages}
    assert {n.split("/")[0] for n in shared} == {
        "config", "demo", "launch", "models", "package.xml",
    }  # fmt: skip
    assert {n for n in names if not n.startswith((info, share)) and n not in code} == {
        f"{data}data/lib/anomaly_detector_ros/anomaly_detector_node",
        f"{data}data/share/ament_index/resource_index/packages/anomaly_detector_ros",
    }


def test_the_installed_wheel_finds_its_files_and_its_command(wheel: Path, tmp_path: Path) -> None:
    """What belongs to the wheel alone is asked for; torch is that of the tests."""
    purelib = tmp_path / "lib/python/site-packages"
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(purelib)
    (data,) = purelib.glob("*.data/data")
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    asked = """
import json, sys
import anomaly_detector_ros
from importlib.metadata import entry_points, version
from anomaly_detector_ros.runtime.resources import share_dir
(script,) = [e for e in entry_points(group="console_scripts") if e.name == "anomaly-detector"]
print(json.dumps({
    "code": anomaly_detector_ros.__file__,
    "version": version("anomaly_detector_ros"),
    "folders": [str(share_dir(kind)) for kind in ("models", "config", "launch", "demo")],
    "main": script.load().__module__,
}))
"""
    clean = {k: v for k, v in os.environ.items() if k not in ("AMENT_PREFIX_PATH", "PYTHONPATH")}
    done = subprocess.run(
        [sys.executable, "-c", asked],
        cwd=tmp_path,
        env={**clean, "PYTHONPATH": str(purelib)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["version"] == __version__
    assert told["main"] == "anomaly_detector_ros.cli.main"
    assert all(Path(path).is_relative_to(tmp_path) for path in [told["code"], *told["folders"]])
