"""What the documents promise: links lead somewhere, commands exist, code runs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from packaging.requirements import Requirement
from PIL import Image
from typer.core import TyperGroup

from anomaly_detector_ros.cli.main import app
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.imaging.rendering import IMAGE_OUTPUTS
from anomaly_detector_ros.ros.parameter_files import launch_arguments
from anomaly_detector_ros.ros.parameters import BY_NAME, CAMERA_SPECS, camera_parameter

SERVICES = "anomaly_detector_ros/ros/node.py"
ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")])

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="not a source checkout")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code of one language in a page, indented or not."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", page.read_text(), re.M | re.S)
    return [re.sub(rf"^{indent}", "", text, flags=re.M) for indent, text in found]


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        target, _, anchor = link.partition("#")
        if target.startswith("http"):
            continue
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {link}"


def shell(*program: str) -> Iterator[tuple[str, list[str]]]:
    """What follows a program's name, with the page, wherever a page runs it.

    Blocks of `bash` run on any machine; those of `sh` need ROS, a camera, Docker or downloads.
    """
    for page in PAGES:
        for block in [*blocks(page, "bash"), *blocks(page, "sh")]:
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if tuple(words[: len(program)]) == program:
                    yield page.name, words[len(program) :]


def commands() -> Iterator[tuple[str, list[str]]]:
    return ((page, words) for page, words in shell("anomaly-detector") if words[0] != "COMMAND")


@pytest.mark.parametrize(("page", "words"), list(commands()), ids=lambda value: str(value)[:40])
def test_commands_exist_with_their_options(page: str, words: list[str]) -> None:
    command = typer.main.get_command(app)
    while isinstance(command, TyperGroup):
        assert words[0] in command.commands, f"{page}: no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    known = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def arguments_of(*files: str) -> set[str]:
    """The arguments of launch files, with those that pass a parameter on."""
    text = "\n".join((ROOT / "launch" / file).read_text() for file in files)
    return {*re.findall(r'"(\w+)"', text), *launch_arguments()}


LAUNCHES = list(shell("ros2", "launch", "anomaly_detector_ros"))


@pytest.mark.parametrize(("page", "words"), LAUNCHES, ids=lambda value: str(value)[:40])
def test_launch_files_take_the_arguments_given(page: str, words: list[str]) -> None:
    file, *given = words
    names = {word.split(":=")[0] for word in given if ":=" in word}
    assert names <= arguments_of(file, "anomaly_detector.launch.py"), page


def test_arguments_in_the_text_are_those_of_launch_files() -> None:
    known = arguments_of(*(file.name for file in ROOT.glob("launch/*.py")))
    for page in PAGES:
        assert set(re.findall(r"`(\w+):=", page.read_text())) <= known, page.name


PARAMETER_FILES = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(blocks(page, "yaml"))
    if "/**:" in block
]


@pytest.mark.parametrize("text", PARAMETER_FILES)
def test_parameter_files_name_parameters_that_exist(text: str) -> None:
    def names(tree: object, above: str = "") -> Iterator[str]:
        if not isinstance(tree, dict):
            yield above
            return
        for key, value in tree.items():
            yield from names(value, f"{above}.{key}".lstrip("."))

    given = yaml.safe_load(text)["/**"]["ros__parameters"]
    of_cameras = {
        camera_parameter(camera, spec.name)
        for camera in given.get("cameras", ())
        for spec in CAMERA_SPECS
    }
    wrong = {n for n in names(given) if n not in BY_NAME and n not in of_cameras}
    assert all(name.startswith("qos_overrides.") for name in wrong), wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_said_to_be_of_a_file_is_in_it(page: Path) -> None:
    for file, code in re.findall(r'```python title="(.+?)"\n(.*?)```', page.read_text(), re.S):
        lines = [line.strip() for line in (ROOT / file).read_text().splitlines()]
        wanted = [line.strip() for line in code.splitlines()]
        places = range(len(lines) - len(wanted) + 1)
        assert any(lines[n : n + len(wanted)] == wanted for n in places), f"{file}:\n{code}"


def test_the_page_of_topics_lists_all_outputs() -> None:
    pytest.importorskip("rclpy", reason="rclpy is not installed")
    from anomaly_detector_ros.ros import costmap, obstacles

    text = (ROOT / "docs" / "topics.md").read_text()
    cells = re.findall(r"^\| (`.+?) \|", text, re.M)
    told = {name for cell in cells for name in re.findall(r"`~/(?:<camera>/)?(.+?)`", cell)}
    made = {*IMAGE_OUTPUTS, *obstacles.OUTPUTS, costmap.TOPIC.removeprefix("~/")}
    made |= {"overlay/compressed", "camera_info", "detections", "label_info", "taken"}
    services = set(re.findall(r'"~/(\w+)"', (ROOT / SERVICES).read_text()))
    assert made | services <= told


def test_every_command_has_a_line_and_every_line_a_command() -> None:
    lines = re.findall(r"^\| (`.+?) \| ", (ROOT / "docs" / "commands.md").read_text(), re.M)
    told = {(cell.split("`")[1].split()[0]) for cell in lines}
    assert told == set(typer.main.get_command(app).commands)


def test_the_readmes_python_runs(
    light_profile: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = Detector.from_profile(light_profile, device="cpu")
    monkeypatch.setattr(Detector, "from_profile", lambda name, device: tiny)
    (code,) = blocks(ROOT / "README.md", "python")
    exec(code, {"image": np.zeros((20, 30, 3), np.uint8)})
    assert len(capsys.readouterr().out.split()) == 3


def test_the_part_of_the_guide_runs_in_a_profile(
    light_profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = ROOT / "CONTRIBUTING.md"
    (code,), (profile,) = blocks(guide, "python"), blocks(guide, "yaml")
    (tmp_path / "euclidean.py").write_text(code)
    tiny = yaml.safe_load(Path(light_profile).read_text())["light_test"]
    mine = {**tiny, **yaml.safe_load(profile)["mine"], "base": None}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"mine": mine}))
    (tmp_path / "images").mkdir()
    Image.new("RGB", (30, 20), (90, 80, 70)).save(tmp_path / "images" / "one.png")
    monkeypatch.chdir(tmp_path)
    (command,) = [words for page, words in commands() if page == guide.name]
    assert app(command, standalone_mode=False) in (None, 0)
    heatmap = np.load(tmp_path / "found" / "one_heatmap.npy")
    assert heatmap.shape == (20, 30)
    assert heatmap.max() > 0


def test_every_dependency_has_a_way_into_a_colcon_workspace() -> None:
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {Requirement(line).name.lower() for line in project["dependencies"]} - {"setuptools"}
    keys = re.findall(
        r"<exec_depend>python3-([\w-]+?)(?:-pip)?<", (ROOT / "package.xml").read_text()
    )
    renamed = {
        "opencv": "opencv-python-headless",
        "pil": "pillow",
        "yaml": "pyyaml",
        "skimage": "scikit-image",
        "sklearn": "scikit-learn",
        "pytorch": "torch",
        "huggingface-hub": "huggingface_hub",
    }
    by_rosdep = {renamed.get(key, key) for key in keys}
    text = (ROOT / "docs" / "install.md").read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^pip install (accelerate .+)$", text, re.M)
    by_pip = {Requirement(word).name.lower() for word in shlex.split(line)}
    assert wanted <= by_rosdep | by_pip
