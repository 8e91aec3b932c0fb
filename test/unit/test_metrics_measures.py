"""Bootstrap, the two passes of a measurement, and the plots."""

import json
from dataclasses import dataclass

import cv2
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly_detector_ros.evaluation.metrics import measures
from anomaly_detector_ros.evaluation.metrics.components import ComponentCounts
from anomaly_detector_ros.evaluation.metrics.measures import Measurement, Metrics, differences
from anomaly_detector_ros.evaluation.metrics.paper import PaperCounts
from anomaly_detector_ros.evaluation.metrics.pixels import PixelCounts
from anomaly_detector_ros.evaluation.table.plots import plot_curves
from anomaly_detector_ros.runtime import statistics

CLASSES = {0: "void", 1: "grass", 2: "rock", 3: "car"}
FREQUENCIES = {1: 0.9, 2: 0.2}


@dataclass
class Truth:
    labels: np.ndarray

    @property
    def anomaly(self):
        return self.labels == 3

    @property
    def valid(self):
        return self.labels != 0


def scenes(count, seed=0, separation=1.0):
    """Truths with a car in most, and scores that are higher on it."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        labels = np.ones((50, 60), np.uint8)
        labels[:, 30:] = 2
        labels[:3] = 0
        if i % 4:
            y, x = rng.integers(3, 25, 2)
            labels[y : y + 25, x : x + 25] = 3
        scores = rng.normal(size=labels.shape) + rng.normal() / 2 + separation * (labels == 3)
        yield cv2.GaussianBlur(scores, (0, 0), 2).astype(np.float32), Truth(labels)


def measure(pairs, **options):
    pairs = list(pairs)
    measurement = Measurement(**options)
    for scores, truth in pairs:
        measurement.add(scores, truth)
    for scores, truth in pairs:
        measurement.add_components(scores, truth)
    return measurement


def test_all_metrics_of_a_measurement():
    pairs = list(scenes(12))
    options = {"class_names": CLASSES, "class_frequencies": FREQUENCIES}
    metrics = measure(pairs, **options).result()
    scores = np.concatenate([s[t.valid] for s, t in pairs])
    truth = np.concatenate([t.anomaly[t.valid] for _, t in pairs])
    labels = np.concatenate([t.labels[t.valid] for _, t in pairs])
    paper = PaperCounts(FREQUENCIES)
    for score, t in pairs:
        paper.add(score, t.labels, t.valid)
    assert metrics.images == 12
    assert metrics.anomaly_share == pytest.approx(truth.mean())
    assert metrics.auc_pr == pytest.approx(average_precision_score(truth, scores), abs=1e-6)
    assert metrics.auroc == pytest.approx(roc_auc_score(truth, scores), abs=1e-6)
    assert metrics.envelope_auc_pr == pytest.approx(metrics.auc_pr, abs=0.016)
    assert 0 < metrics.weighted_auc_pr == paper.auc_pr() < 1
    assert 0 < metrics.weighted_f1_star == paper.f1_star() < 1
    flagged = scores >= np.float32(metrics.threshold)
    assert set(metrics.per_class) == {"grass", "rock", "car"}
    for label, name in ((1, "grass"), (2, "rock"), (3, "car")):
        of = metrics.per_class[name]
        assert of.anomalous == (name == "car")
        assert of.pixels == (labels == label).sum()
        assert of.flagged == pytest.approx(flagged[labels == label].mean())
    components = ComponentCounts()
    for score, t in pairs:
        components.add(score >= np.float32(metrics.threshold), t.anomaly, t.valid)
    assert metrics.f1_star == components.f1_star()
    for name, (low, high) in metrics.intervals.items():
        assert low < getattr(metrics, name) < high, name
    assert set(metrics.intervals) == {
        "auc_pr", "envelope_auc_pr", "auroc", "fpr95", "f1_star", "weighted_auc_pr",
        "weighted_f1_star",
    }  # fmt: skip


def test_what_was_not_asked_for_is_nan_and_json_has_null():
    metrics = measure(scenes(3)).result()
    assert np.isnan([metrics.weighted_auc_pr, metrics.weighted_f1_star]).all()
    assert metrics.per_class == {}
    assert set(metrics.intervals) == {"auc_pr", "envelope_auc_pr", "auroc", "fpr95", "f1_star"}
    read = json.loads(json.dumps(metrics.to_dict(), allow_nan=False))
    assert read["weighted_auc_pr"] is None
    assert read["auc_pr"] == metrics.auc_pr
    assert read["intervals"]["auroc"] == list(metrics.intervals["auroc"])


def undefined(metrics: Metrics):
    values = metrics.to_dict()
    return {name for name, value in values.items() if value is None}


def test_corner_cases_give_nan():
    rng = np.random.default_rng(0)
    options = {"class_names": CLASSES, "class_frequencies": FREQUENCIES}
    shape = (40, 40)
    curve = {"auc_pr", "envelope_auc_pr", "auroc", "fpr95", "threshold", "best_f1"}
    nothing = {"anomaly_share", "f1_star", "weighted_auc_pr"}

    def result(*label_maps):
        pairs = [(rng.random(labels.shape) / 9, Truth(labels)) for labels in label_maps]
        return measure(pairs, **options).result()

    grass, void, car = (np.full(shape, label, np.uint8) for label in (1, 0, 3))
    assert undefined(Measurement().result()) == curve | nothing | {"weighted_f1_star"}
    # The paper's F1* takes void for one more unit of the image.
    assert undefined(result(void, void)) == curve | nothing
    # Soft labels need no anomaly, but not all of them 0, nor all 1.
    assert undefined(result(grass, grass)) == curve | {"f1_star"}
    assert undefined(result(car, car)) == curve | {"weighted_auc_pr"}
    assert undefined(result(np.ones((1, 1), np.uint8))) == curve | {"f1_star"}
    one_car = np.concatenate([grass, car])
    one = result(one_car)
    assert undefined(one) == set()
    assert one.intervals == {}
    assert result(grass, grass).intervals == {}
    assert result(grass, one_car).intervals["f1_star"]
    assert set(result(grass, void, car).per_class) == {"grass", "car"}


def test_passes_that_do_not_fit_together_are_refused():
    pairs = list(scenes(3))
    measurement = Measurement()
    for scores, truth in pairs:
        measurement.add(scores, truth)
    measurement.add_components(*pairs[0])
    with pytest.raises(ValueError, match="after add_components"):
        measurement.add(*pairs[0])
    with pytest.raises(ValueError, match=r"3 images, add_components\(\) only 1"):
        measurement.result()
    for pair in pairs[1:]:
        measurement.add_components(*pair)
    with pytest.raises(ValueError, match="one more"):
        measurement.add_components(*pairs[0])
    measurement = Measurement()
    for scores, truth in pairs:
        measurement.add(scores, truth)
    for scores, truth in pairs:
        measurement.add_components(scores * np.float32(1.01), truth)
    with pytest.raises(ValueError, match="differ between the two passes"):
        measurement.result()


def test_resamples_equal_brute_force():
    # Few different scores, so that every bin holds one.
    pairs = [(np.round(scores, 1), truth) for scores, truth in scenes(6)]
    measurement = measure(pairs, class_frequencies=FREQUENCIES, resamples=25, seed=3)
    threshold = np.float32(measurement.result().threshold)
    draws = statistics.draw(6, 25, 3)
    assert (draws.sum(1) == 6).all()
    for i, drawn in enumerate(draws):
        counts, components, paper = PixelCounts(), ComponentCounts(), PaperCounts(FREQUENCIES)
        for (scores, truth), times in zip(pairs, drawn, strict=True):
            for _ in range(times):
                counts.add(scores, truth.anomaly, truth.valid)
                paper.add(scores, truth.labels, truth.valid)
                components.add(scores >= threshold, truth.anomaly, truth.valid)
        pixels = counts.result()
        expected = {
            "auc_pr": pixels.auc_pr,
            "auroc": pixels.auroc,
            "fpr95": pixels.fpr95,
            "envelope_auc_pr": pixels.envelope_auc_pr,
            "weighted_auc_pr": paper.auc_pr(),
            "f1_star": components.f1_star(),
        }
        for name, value in expected.items():
            got = measurement.resampled[name][i]
            assert got == pytest.approx(value, abs=1e-6, nan_ok=True), name


def test_few_thresholds_stay_close_to_exact():
    pairs = list(scenes(10, seed=5))
    measurement = measure(pairs, resamples=1)
    exact = measurement.result()
    assert len(measurement.curve().thresholds) > 10 * measures.MAX_THRESHOLDS
    coarse = measures.ImageCurves(measurement.curve())
    for scores, truth in pairs:
        coarse.add(scores, truth.anomaly, truth.valid)
    for name, value in coarse.resampled(np.ones((1, 10), int)).items():
        assert value == pytest.approx(getattr(exact, name), abs=1e-3), name


def test_intervals_cover_the_truth():
    rng = np.random.default_rng(0)

    def small_scenes(count):
        """Images of 12 x 12 pixels that differ more among each other than their pixels do."""
        for _ in range(count):
            labels = rng.choice(np.array([1, 3], np.uint8), (12, 12), p=(0.8, 0.2))
            scores = rng.normal(size=labels.shape) + rng.normal(1, 1) * (labels == 3)
            yield scores.round(1), Truth(labels)

    everything = PixelCounts()
    for scores, truth in small_scenes(3000):
        everything.add(scores, truth.anomaly, truth.valid)
    truth = everything.result()
    covered = dict.fromkeys(("auc_pr", "auroc", "fpr95"), 0)
    for _ in range(60):
        intervals = measure(small_scenes(25), resamples=200).result().intervals
        for name in covered:
            low, high = intervals[name]
            covered[name] += low <= getattr(truth, name) <= high
    # Of 60 intervals that hold the truth with 95%, 50 or fewer do so once in 1000 times; those of
    # 25 images are a little short.
    assert all(number > 50 for number in covered.values()), covered
    assert sum(covered.values()) < 180


def test_paired_differences_are_tighter_than_their_parts():
    pairs = list(scenes(16))
    better = measure(pairs)
    rng = np.random.default_rng(0)
    worse = measure(
        (scores + 0.3 * rng.normal(size=scores.shape), truth) for scores, truth in pairs
    )
    found = differences(better, worse)
    low, high = found["auc_pr"]
    assert 0 < low < better.result().auc_pr - worse.result().auc_pr < high
    own = better.result().intervals["auc_pr"]
    assert high - low < own.high - own.low
    assert differences(better, better)["auroc"] == (0, 0)
    with pytest.raises(ValueError, match="same images"):
        differences(better, measure(pairs[:-1]))
    with pytest.raises(ValueError, match="same seed"):
        differences(better, measure(pairs, seed=1))


def test_plot_shows_a_line_per_method(tmp_path):
    curves = {f"separation {s}": measure(scenes(4, separation=s)).curve() for s in (0.5, 1, 2)}
    curves["without anomalies"] = PixelCounts().curve()
    file = tmp_path / "curves.png"
    plot_curves(curves, file)
    image = cv2.imread(str(file))
    assert image.shape[0] > 500
    assert image.shape[1] > 1000
    for blue, green, red in ((180, 119, 31), (14, 127, 255), (44, 160, 44)):  # matplotlib's first
        near = np.abs(image.astype(int) - (blue, green, red)).sum(-1) < 30
        left, right = np.array_split(near, 2, axis=1)
        assert left.sum() > 200
        assert right.sum() > 200
    plot_curves({}, file)
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
