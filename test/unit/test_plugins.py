"""Parts from one file outside of the package, used by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from anomaly_detector_ros.baselines.base import BASELINES
from anomaly_detector_ros.cli.main import main
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.evaluation.datasets.base import DATASETS
from anomaly_detector_ros.synthesis.guidance import GUIDANCES
from anomaly_detector_ros.synthesis.samplers import SAMPLERS

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

TOY_SAMPLER = """
from dataclasses import dataclass

from anomaly_detector_ros.synthesis.samplers import SAMPLERS, Sampler


@SAMPLERS.register("blend")
@dataclass(frozen=True)
class Blend(Sampler):
    share: float = 0.5

    def __call__(
        self, denoiser, x_input, *, initial_noise=None, generator=None, callback=None
    ):
        return (1 - self.share) * x_input + self.share
"""

TOY_GUIDANCE = """
from dataclasses import dataclass

from anomaly_detector_ros.synthesis.guidance import GUIDANCES, Guidance


@GUIDANCES.register("back")
@dataclass(frozen=True)
class Back(Guidance):
    amount: float = 1.0

    def gradient(self, denoiser, similarity, mu, x_input, t):
        return similarity.grad(mu, x_input)

    def arrive(self, schedule, similarity, x, x_input, t, t_next):
        return x + self.amount * (x_input - x)
"""


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests list the parts that this package has."""
    for registry in (DATASETS, BASELINES, SAMPLERS, GUIDANCES):
        registry.names()  # once complete, built-in parts are not imported again
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))


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


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_sampler_from_a_file(light_profile: str, tmp_path: Path, share: float) -> None:
    (tmp_path / "toy.py").write_text(TOY_SAMPLER)
    sampler = {"name": f"{tmp_path / 'toy.py'}:blend", "share": share, "num_edits": 2}
    detector = Detector.from_profile(
        light_profile, device="cpu", offline=True, overrides={"sampler": sampler}
    )
    image = np.full((16, 24, 3), (60, 110, 80), np.uint8)
    expected = image if share == 0 else np.full_like(image, 255)
    assert np.array_equal(detector.detect(image).edited, expected)
    with pytest.raises(UserError, match=r"no setting 'shar' \(did you mean 'share'\?\)"):
        Detector.from_profile(
            light_profile, offline=True, overrides={"sampler": {"name": sampler["name"], "shar": 1}}
        )


def test_a_guidance_from_a_file(light_profile: str, tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text(TOY_GUIDANCE)
    overrides = {"sampler": {"guidance": f"{tmp_path / 'toy.py'}:back", "amount": 1.0}}
    image = np.full((16, 24, 3), (60, 110, 80), np.uint8)
    detector = Detector.from_profile(light_profile, offline=True, overrides=overrides)
    assert np.array_equal(detector.detect(image).edited, image)
