"""Parts from one file outside of the package, used by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from anomaly_detector_ros.cli.main import main

TOY_DATASET = """
from dataclasses import dataclass

import numpy as np

from anomaly_detector_ros.evaluation.datasets.base import DATASETS, Classes, Dataset, Layout

CLASSES = Classes.named({0: "void", 1: "moss", 2: "robot"}, anomalous=("robot",))


@DATASETS.register("moss")
@dataclass(frozen=True)
class Moss(Layout):
    name = "moss"
    splits = ("north", "south")
    evaluated_split = "south"

    def open(self, progress=None):
        files = sorted((self.root / (self.split or "")).rglob("*.png"))
        return Dataset(self.name, self.root, CLASSES, [(f, f) for f in files], self._read)

    def _read(self, file):
        import cv2

        return np.where(cv2.imread(str(file))[..., 2] > 200, 2, 1).astype(np.uint8)
"""

TOY_BASELINE = """
from dataclasses import dataclass

from anomaly_detector_ros.baselines.base import BASELINES, Baseline


@BASELINES.register("mean")
@dataclass(frozen=True)
class Mean(Baseline):
    name = "mean"
    power: float = 2.0

    def learn(self, vectors, seed, progress):
        return {"mean": vectors.mean(0)}

    def scorer(self, state):
        return lambda vectors: (vectors - state["mean"]).abs().pow(self.power).sum(1)
"""


def run(*arguments: object) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    assert ended.value.code == 0


@pytest.fixture
def moss(tmp_path: Path) -> Path:
    """Green pictures; those of the south hold a red square."""
    root = tmp_path / "moss"
    for part in ("north", "south"):
        (root / part).mkdir(parents=True)
        for i in range(2):
            image = np.full((48, 64, 3), (60, 110 + i, 80), np.uint8)
            if part == "south":
                image[14:42, 10 + 10 * i : 40 + 10 * i] = (40, 40, 230)
            cv2.imwrite(str(root / part / f"{i}.png"), image)
    return root


def test_evaluate_takes_a_data_set_and_a_baseline_from_a_file(
    moss: Path, light_profile: str, tmp_path: Path
) -> None:
    (tmp_path / "data.py").write_text(TOY_DATASET)
    (tmp_path / "method.py").write_text(TOY_BASELINE)
    dataset, method = f"{tmp_path / 'data.py'}:moss", f"{tmp_path / 'method.py'}:mean"
    output = tmp_path / "out" / "results.json"
    run(
        "evaluate", "--dataset", dataset, "--root", moss, "--train-root", moss,
        "--train-split", "north", "--method", method, "--method", "random",
        "--profile", light_profile, "--cache", tmp_path / "cache", "--output", output,
        "--device", "cpu", "--offline",
    )  # fmt: skip
    results = json.loads(output.read_text())
    assert results["dataset"] == "moss"
    assert results["dataset_images"] == results["train_images"] == 2
    rows = {row["title"]: row for row in results["rows"]}
    assert rows["mean"]["auc_pr"] > 0.9 > rows["Random scores"]["auc_pr"]
    assert set(rows["mean"]["per_class"]) == {"moss", "robot"}
    assert "| mean |" in output.with_suffix(".md").read_text()
