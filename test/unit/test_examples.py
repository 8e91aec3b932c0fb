"""The programs of examples/ that need no ROS run as a reader would run them."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest

from anomaly_detector_ros import UserError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="not a source checkout")


def run(program: str, *arguments: str | Path) -> None:
    runpy.run_path(str(EXAMPLES / program))["main"]([str(each) for each in arguments])


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two small pictures that an image sequence may hold."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (20, 30, 3), np.uint8)
        cv2.imwrite(str(folder / f"p_{number}.png"), pixels)
    return folder


def test_a_folder(
    pictures: Path, light_profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("detect_folder.py", pictures, "--output", tmp_path / "out", "--profile", light_profile)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["p_0.jpg", "p_1.jpg"]
    lines = capsys.readouterr().out.splitlines()
    scores = [float(line.split()[0]) for line in lines]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 2


def test_a_stream(
    pictures: Path, light_profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = pictures / "p_%d.png"
    run("stream_video.py", video, "--output", tmp_path / "out", "--profile", light_profile)
    assert len(list((tmp_path / "out").iterdir())) == 2
    assert len(capsys.readouterr().out.splitlines()) == 2
    with pytest.raises(SystemExit, match="cannot open"):
        run("stream_video.py", tmp_path / "none.mp4")


def test_labels_of_ones_own(
    pictures: Path, light_profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    truth = np.zeros((20, 30), np.uint8)
    truth[:5] = 255
    cv2.imwrite(str(masks / "p_0.png"), truth)
    arguments = (pictures, masks, "--profile", light_profile)
    with pytest.raises(SystemExit, match=r"p_1\.png' is missing"):
        run("evaluate_labels.py", *arguments)
    cv2.imwrite(str(masks / "p_1.png"), truth)
    run("evaluate_labels.py", *arguments)
    assert "anomalous pixels            25.00%" in capsys.readouterr().out


@pytest.mark.slow
def test_the_notebook_runs_and_finds_the_cone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real models; the cells are plain Python, so no kernel is needed."""
    import matplotlib

    matplotlib.use("Agg")
    monkeypatch.chdir(EXAMPLES)
    cells = json.loads((EXAMPLES / "method.ipynb").read_text())["cells"]
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            try:
                exec("".join(cell["source"]), names)
            except UserError as error:
                if "offline" in str(error) or "fetch" in str(error):
                    pytest.skip(str(error))
                raise
    mask, truth = names["mask"], names["truth"]
    assert isinstance(mask, np.ndarray)
    assert isinstance(truth, np.ndarray)
    assert (mask & truth).sum() > 0.9 * truth.sum()
