"""The systemd unit and the Dockerfile, as far as they can be judged without either."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import setuptools
import yaml

from anomaly_detector_ros.runtime.environment import ALLOCATOR
from anomaly_detector_ros.runtime.resources import share_dir
from anomaly_detector_ros.weights.registry import cache_directory

ROOT = Path(__file__).resolve().parents[2]
UNIT = share_dir("config") / "anomaly_detector.service"


class Repeated(dict):
    """Joins the values of keys that come more than once, as systemd does for Environment=."""

    def __setitem__(self, key: str, value: object) -> None:
        if isinstance(value, list) and key in self:
            value = self[key] + value
        super().__setitem__(key, value)


@pytest.fixture
def service() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None, dict_type=Repeated)
    parser.optionxform = str
    parser.read(UNIT)
    return parser["Service"]


def test_the_unit_is_restarted_without_end_and_stops_by_sigint(service: configparser.SectionProxy):
    assert service["Restart"] == "always"
    assert service["KillSignal"] == "SIGINT"
    assert service["User"] == "robot"
    text = UNIT.read_text()
    assert "StartLimitIntervalSec=0" in text
    assert "After=network-online.target" in text


def test_the_unit_gives_the_node_its_environment(
    service: configparser.SectionProxy, monkeypatch: pytest.MonkeyPatch
):
    pairs = service["Environment"].split()
    environment = dict(pair.split("=", 1) for pair in pairs)
    wanted = {name: value for name, value in ALLOCATOR.items() if "THRESHOLD" in name}
    assert wanted.items() <= environment.items()
    monkeypatch.setenv("ANOMALY_DETECTOR_CACHE", environment["ANOMALY_DETECTOR_CACHE"])
    assert cache_directory() == Path("/var/cache") / service["CacheDirectory"]
    assert environment["ROS_LOG_DIR"] == f"/var/log/{service['LogsDirectory']}"


def test_the_unit_launches_what_is_installed(service: configparser.SectionProxy):
    file = re.search(r"anomaly_detector_ros (\S+\.launch\.py)", service["ExecStart"])[1]
    assert (share_dir("launch") / file).is_file()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path):
    unit = shutil.copy(UNIT, tmp_path)
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


needs_source = pytest.mark.skipif(
    not (ROOT / "docker" / "Dockerfile").is_file(), reason="not a source checkout"
)


@needs_source
def test_the_image_gets_every_file_that_is_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    package = setuptools.distutils.core.run_setup("setup.py", stop_after="init")
    installed = [Path(file) for _, files in package.data_files for file in files]
    # Read by setup.py itself, or by pip, or by the Dockerfile.
    needed = {"anomaly_detector_ros", "docker", "setup.py", "pyproject.toml", "README.md"}
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {line[1:] for line in lines if line.startswith("!")}
    assert {*needed, *(file.parts[0] for file in installed)} <= sent
    assert all((ROOT / name).exists() for name in sent)


@needs_source
def test_the_image_runs_as_a_user_and_starts_what_is_there():
    text = (ROOT / "docker" / "Dockerfile").read_text()
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["${UID}"]
    assert re.search(r"^FROM ros:\$\{ROS_DISTRO\}-ros-base$", text, re.MULTILINE)
    entry = yaml.safe_load(re.search(r"^ENTRYPOINT (.+)$", text, re.MULTILINE)[1])
    command = yaml.safe_load(re.search(r"^CMD (.+)$", text, re.MULTILINE)[1])
    workdir = re.search(r"^WORKDIR (.+)$", text, re.MULTILINE)[1]
    script = ROOT / Path(entry[0]).relative_to(workdir)
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    assert (share_dir("launch") / command[-1]).is_file()
