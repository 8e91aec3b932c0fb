"""Parts from one file outside of the package, used by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from anomaly_detector_ros.baselines.base import BASELINES
from anomaly_detector_ros.cli.main import main
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.distances.base import DISTANCES
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.evaluation.datasets.base import DATASETS
from anomaly_detector_ros.features.base import FEATURES
from anomaly_detector_ros.segmentation.base import SEGMENTERS
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

from anomaly_detector_ros.features.base import FEATURES
from anomaly_detector_ros.segmentation.base import SEGMENTERS
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


TOY_DISTANCE = """
from dataclasses import dataclass

import torch

from anomaly_detector_ros.distances.base import DISTANCES, Distance, DistanceSettings


@DISTANCES.register("from_mean")
@dataclass(frozen=True)
class FromMean(DistanceSettings):
    fitted = True
    vectors: int = 100

    def build(self, learnt):
        return FromMeanDistance(learnt["mean"])

    def collect(self, images, sets):
        return {"mean": images.sample(self.vectors).mean(0)}

    def fit(self, collected):
        return FromMeanDistance(torch.stack([each["mean"] for each in collected]).mean(0))


class FromMeanDistance(Distance):
    full_resolution = True

    def __init__(self, mean):
        self.mean = mean

    def __call__(self, original, edits):
        return (original.float() - self.mean[:, None, None]).norm(dim=1)

    def to(self, device):
        return FromMeanDistance(self.mean.to(device))

    def tensors(self):
        return {"mean": self.mean}
"""

TOY_FEATURES = """
from dataclasses import dataclass

from anomaly_detector_ros.features.base import FEATURES, FeatureSettings


@FEATURES.register("luminance")
@dataclass(frozen=True, kw_only=True)
class Luminance(FeatureSettings):
    gain: float = 1.0

    def extractor(self, loader, input_size):
        return LuminanceFeatures(self.gain)


class LuminanceFeatures:
    channels = stride = 1

    def __init__(self, gain):
        self.gain = gain

    def extract(self, images):
        return self.gain * images.float().mean(1, keepdim=True)
"""

TOY_SEGMENTER = """
from dataclasses import dataclass

import numpy as np

from anomaly_detector_ros.segmentation.base import SEGMENTERS, SegmenterSettings


@SEGMENTERS.register("stripes")
@dataclass(frozen=True, kw_only=True)
class Stripes(SegmenterSettings):
    count: int = 4
    needs_map = False

    def build(self, loader):
        return self

    def segment(self, image, anomaly_map):
        rows = np.arange(image.shape[0]) * self.count // image.shape[0] + 1
        return np.repeat(rows[:, None], image.shape[1], 1).astype(np.int32)
"""


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests list the parts that this package has."""
    for registry in (
        *(DATASETS, BASELINES, SAMPLERS, GUIDANCES),
        *(DISTANCES, FEATURES, SEGMENTERS),
    ):
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
    arguments = (
        "evaluate", "--dataset", dataset, "--root", moss, "--train-root", moss,
        "--train-split", "north", "--method", method, "--method", "random",
        "--profile", light_profile, "--cache", tmp_path / "cache", "--output", output,
        "--device", "cpu", "--offline",
    )  # fmt: skip
    run(*arguments)
    results = json.loads(output.read_text())
    assert results["dataset"] == "moss"
    assert results["dataset_images"] == results["train_images"] == 2
    rows = {row["title"]: row for row in results["rows"]}
    assert rows["mean"]["auc_pr"] > 0.9 > rows["Random scores"]["auc_pr"]
    assert set(rows["mean"]["per_class"]) == {"moss", "robot"}
    assert "| mean |" in output.with_suffix(".md").read_text()

    # Another baseline of the same name does not take what the first one left in the cache.
    (tmp_path / "other.py").write_text(TOY_BASELINE.replace(".sum(1)", ".sum(1).neg()"))
    run(*[str(given).replace("method.py", "other.py") for given in arguments])
    rows = {row["title"]: row for row in json.loads(output.read_text())["rows"]}
    assert rows["mean"]["auc_pr"] < 0.5


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


def test_detect_takes_a_distance_features_and_a_segmenter_from_files(
    moss: Path, light_profile: str, tmp_path: Path
) -> None:
    """A distance that is fitted; all files are named relative to the profile's."""
    for name, content in (
        ("distance", TOY_DISTANCE), ("features", TOY_FEATURES), ("segmenter", TOY_SEGMENTER),
    ):  # fmt: skip
        (tmp_path / f"{name}.py").write_text(content)
    (own,) = yaml.safe_load(Path(light_profile).read_text()).values()
    own |= {
        "features": {"name": "features.py:luminance", "gain": 2.0},
        "distance": {"name": "./distance.py:from_mean", "vectors": 50},
        "segmenter": {"name": "segmenter.py:stripes", "count": 3},
        "threshold": 0.95,
    }
    profile, calibration = tmp_path / "mine.yaml", tmp_path / "mine.safetensors"
    profile.write_text(yaml.safe_dump({"mine": own}))
    common = ("--profile", profile, "--device", "cpu", "--offline")
    run(
        "calibrate", "--data", moss / "north", "--holdout", 0, "--output", calibration, *common
    )  # fmt: skip
    own["calibration"] = {"file": calibration.name}
    profile.write_text(yaml.safe_dump({"mine": own}))
    output = tmp_path / "out"
    run("detect", moss / "south" / "0.png", moss / "north" / "1.png", "--output", output, *common)
    strange, nominal = (np.load(output / f"{index}_heatmap.npy") for index in (0, 1))
    for rows in (slice(16), slice(16, 32), slice(32, 48)):
        assert len(np.unique(strange[rows])) == 1
    assert strange[20, 0] > 0.999 > nominal.max()
    own["segmenter"]["cuont"] = 4
    profile.write_text(yaml.safe_dump({"mine": own}))
    with pytest.raises(UserError, match=r"stripes has no setting 'cuont' \(did you mean 'count'"):
        Detector.from_profile(str(profile), offline=True)
