"""Pixel and component metrics."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from anomaly_detector_ros.evaluation.datasets.base import open_dataset
from anomaly_detector_ros.evaluation.metrics import pixels
from anomaly_detector_ros.evaluation.metrics.components import TAUS, ComponentCounts
from anomaly_detector_ros.evaluation.metrics.paper import PaperCounts
from anomaly_detector_ros.evaluation.metrics.pixels import PixelCounts


def everything(shape):
    return np.ones(shape, bool)


def count(scores, truth):
    """Counts one image without void."""
    counts = PixelCounts()
    counts.add(scores, truth, everything(scores.shape))
    return counts


def envelope_area_by_definition(scores, soft):
    """From the definition: precisions, their envelope, trapezoids from precision 1 at recall 0."""
    thresholds = np.unique(scores)[::-1]
    found = np.array([(scores >= t).sum() for t in thresholds])
    true = np.array([soft[scores >= t].sum() for t in thresholds])
    envelope = [max(true[i:] / found[i:]) for i in range(len(found))]
    recall = np.concatenate([[0], true / true[-1]])
    precision = np.array([1, *envelope])
    return np.sum(np.diff(recall) * (precision[1:] + precision[:-1])) / 2


def kinds_of_scores():
    """By name: scores in the ranges that methods give."""
    rng = np.random.default_rng(1)
    normal = rng.normal(size=(60, 80))
    return {
        "distances": np.clip(rng.random((60, 80)), 0, 1),
        "log-likelihoods, all negative": 40 * normal - 1500,
        "both signs": normal,
        "few values": np.round(normal),
        "wide range": np.sign(normal) * np.exp(20 * np.abs(normal)),
        "half precision": normal.astype(np.float16),
        "constant": np.zeros((60, 80)),
    }


@pytest.mark.parametrize("kind", kinds_of_scores())
def test_pixel_metrics_match_scikit_learn(kind):
    rng = np.random.default_rng(2)
    truth = rng.random((60, 80)) < 0.1
    scores = kinds_of_scores()[kind].astype(np.float32)
    scores[truth] += 0.5 * scores.std(dtype=float)
    result = count(scores, truth).result()
    flat, labels = scores.ravel(), truth.ravel()
    assert result.auc_pr == pytest.approx(average_precision_score(labels, flat), abs=1e-12)
    assert result.auroc == pytest.approx(roc_auc_score(labels, flat), abs=1e-12)
    expected = envelope_area_by_definition(flat, labels)
    assert result.envelope_auc_pr == pytest.approx(expected, abs=1e-12)
    assert result.envelope_auc_pr >= result.auc_pr - 1e-12
    fpr, tpr, _ = roc_curve(labels, flat, drop_intermediate=False)
    assert result.fpr95 == pytest.approx(fpr[np.searchsorted(tpr, 0.95)], abs=1e-12)
    assert result.anomaly_share == pytest.approx(labels.mean())
    predicted = flat >= np.float32(result.best_threshold)
    f1 = 2 * (predicted & labels).sum() / (predicted.sum() + labels.sum())
    assert result.best_f1 == pytest.approx(f1, abs=1e-12)


@pytest.mark.parametrize("kind", kinds_of_scores())
def test_metrics_of_soft_labels_match_scikit_learn(kind):
    rng = np.random.default_rng(3)
    scores = kinds_of_scores()[kind].astype(np.float32)
    soft = rng.random((60, 80))
    result = count(scores, soft).result()
    flat, labels = scores.ravel(), soft.ravel()
    # A pixel that is anomalous by 0.7 is an anomalous one of weight 0.7 and a nominal one of 0.3.
    both = np.repeat([1, 0], flat.size), np.tile(flat, 2)
    weights = np.concatenate([labels, 1 - labels])
    expected = average_precision_score(*both, sample_weight=weights)
    assert result.auc_pr == pytest.approx(expected, abs=1e-12)
    assert result.auroc == pytest.approx(roc_auc_score(*both, sample_weight=weights), abs=1e-12)
    expected = envelope_area_by_definition(flat, labels)
    assert result.envelope_auc_pr == pytest.approx(expected, abs=1e-12)


def test_envelope_area_in_closed_form():
    truth = np.zeros((10, 10), bool)
    truth[:2] = True
    assert count(truth, truth).result().envelope_auc_pr == 1
    # One threshold: a line from precision 1 at recall 0 to the share of anomalies at recall 1.
    assert count(np.zeros(truth.shape), truth).result().envelope_auc_pr == pytest.approx(0.6)
    # Precision 0 / 20, 10 / 30, 20 / 100: the envelope starts at 1/3, with no area below 1.
    scores = np.zeros(truth.shape)
    scores[2:4], scores[:1] = 2, 1
    expected = 0.5 * 1 / 3 + 0.5 * (1 / 3 + 0.2) / 2
    assert count(scores, truth).result().envelope_auc_pr == pytest.approx(expected)


def test_merged_bins_stay_few_and_close_to_exact(monkeypatch):
    monkeypatch.setattr(pixels, "MAX_BINS", 1 << 12)
    rng = np.random.default_rng(4)
    counts, pooled = PixelCounts(), []
    for spread in (1e-6, 1, 1e6):
        truth = rng.random((100, 100)) < 0.1
        scores = (spread * (rng.normal(size=(100, 100)) + truth)).astype(np.float32)
        counts.add(scores, truth, everything(truth.shape))
        pooled.append((scores.ravel(), truth.ravel()))
    scores, truth = np.concatenate(pooled, 1)
    curve, result = counts.curve(), counts.result()
    assert 1 << 11 < len(curve.thresholds) <= 1 << 12
    assert (np.diff(curve.thresholds) < 0).all()
    assert curve.thresholds[-1] <= scores.min()
    # A threshold of merged scores still separates what was counted on its two sides.
    predicted = scores >= np.float32(result.best_threshold)
    f1 = 2 * (predicted & (truth > 0)).sum() / (predicted.sum() + truth.sum())
    assert result.best_f1 == pytest.approx(f1, abs=1e-12)
    assert result.auc_pr == pytest.approx(average_precision_score(truth, scores), abs=1e-3)
    assert result.auroc == pytest.approx(roc_auc_score(truth, scores), abs=1e-3)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(width=32, allow_nan=False, allow_infinity=False), st.booleans()),
        min_size=2,
        max_size=40,
    ),
    st.integers(1, 39),
)
def test_any_finite_scores_streamed_equal_all_at_once(pairs, cut):
    scores = np.array([pair[0] for pair in pairs], np.float32)[None]
    truth = np.array([pair[1] for pair in pairs])[None]
    streamed = PixelCounts()
    for part in (slice(cut), slice(cut, None)):
        streamed.add(scores[:, part], truth[:, part], everything(truth[:, part].shape))
    whole = count(scores, truth)
    for ours, theirs in zip(streamed.curve(), whole.curve(), strict=True):
        assert np.array_equal(ours, theirs)
    if 0 < truth.sum() < truth.size:
        expected = average_precision_score(truth[0], scores[0])
        assert streamed.result().auc_pr == pytest.approx(expected, abs=1e-12)


def test_void_pixels_do_not_count():
    truth = np.zeros((10, 10), bool)
    truth[:5] = True
    scores = truth.astype(np.float32)
    scores[5] = 2  # all wrong, all void
    valid = everything(truth.shape)
    valid[5] = False
    counts = PixelCounts()
    counts.add(scores, truth, valid)
    assert counts.result().auc_pr == counts.result().envelope_auc_pr == 1


@pytest.mark.parametrize("value", [True, False])
def test_one_class_alone_gives_nan(value):
    truth = np.full((4, 4), value)
    result = count(np.zeros((4, 4)), truth).result()
    assert np.isnan([result.auc_pr, result.auroc, result.fpr95, result.best_threshold]).all()
    assert np.isnan(result.envelope_auc_pr)
    assert result.anomaly_share == value
    counts = PixelCounts()
    counts.add(np.zeros((4, 4)), truth, ~everything((4, 4)))
    assert np.isnan([counts.result().auc_pr, counts.result().anomaly_share]).all()


def test_nothing_at_all_gives_nan():
    assert np.isnan(PixelCounts().result().auc_pr)
    assert not PixelCounts().curve().complete()
    counts = count(np.zeros((1, 1)), everything((1, 1)))
    assert np.isnan(counts.result().auroc)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_scores_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="NaN or an infinite"):
        count(np.full((2, 2), bad), everything((2, 2)))


def test_unfit_sizes_and_soft_labels_are_refused():
    with pytest.raises(ValueError, match=r"scores are \(2, 3\), the truth \(2, 2\)"):
        count(np.zeros((2, 3)), everything((2, 2)))
    for bad in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match=r"soft labels lie in \[0, 1\]"):
            count(np.zeros((2, 2)), np.full((2, 2), bad))


def golden_case():
    truth = np.zeros((100, 200), bool)
    truth[10:50, 10:50] = truth[10:50, 60:100] = True
    valid = everything(truth.shape)
    valid[:5] = False
    scores = np.zeros(truth.shape, np.float32)
    scores[10:50, 10:80] = 0.9
    scores[70:95, 150:190] = 0.8
    scores[60:65, 5:10] = 0.95
    return scores, truth, valid


def test_component_f1_golden_case():
    scores, truth, valid = golden_case()
    counts = ComponentCounts()
    counts.add(scores >= 0.5, truth, valid)
    assert counts.siou == pytest.approx([0.8, 0.4])
    assert sorted(counts.ppv, reverse=True) == pytest.approx([0.857142857, 0])
    assert counts.f1_star() == pytest.approx(0.60909, abs=1e-5)


def test_the_thresholds_of_siou_are_the_benchmarks():
    """Theirs are `numpy.linspace`'s: an sIoU of 0.6 does not reach the eighth."""
    assert TAUS[7] == 0.6000000000000001
    truth = np.zeros((40, 50), bool)
    truth[:20] = True  # 1000 pixels, of which 600 are found
    predicted = np.zeros_like(truth)
    predicted[:12] = True
    counts = ComponentCounts()
    counts.add(predicted, truth, everything(truth.shape))
    assert counts.siou == [0.6]
    assert counts.f1_star() == pytest.approx(7 / 11)


def component_scores_by_definition(predicted, truth):
    """The definitions taken literally, component by component; none is too small here."""
    from scipy.ndimage import label

    truth, _ = label(truth, np.ones((3, 3)))
    predicted, _ = label(predicted, np.ones((3, 3)))
    siou, ppv = [], []
    for k in range(1, truth.max() + 1):
        here = truth == k
        union = np.isin(predicted, np.setdiff1d(predicted[here], 0))
        others = union & (truth > 0) & ~here
        siou.append((here & union).sum() / ((here | union).sum() - others.sum()))
    for p in range(1, predicted.max() + 1):
        of = predicted == p
        ppv.append((of & (truth > 0)).sum() / of.sum())
    return siou, ppv


def test_component_scores_equal_their_definitions(monkeypatch):
    for name in ("MIN_PREDICTED", "MIN_TRUTH"):
        monkeypatch.setattr(f"anomaly_detector_ros.evaluation.metrics.components.{name}", 1)
    rng = np.random.default_rng(5)
    for _ in range(20):
        predicted, truth = rng.random((2, 25, 30)) < 0.25
        counts = ComponentCounts()
        counts.add(predicted, truth, everything(truth.shape))
        siou, ppv = component_scores_by_definition(predicted, truth)
        assert sorted(counts.siou) == pytest.approx(sorted(siou))
        assert sorted(counts.ppv) == pytest.approx(sorted(ppv))


def test_component_f1_corner_cases():
    nothing = np.zeros((50, 50), bool)
    square = nothing.copy()
    square[10:40, 10:40] = True
    valid = everything(nothing.shape)
    cases = {
        "no anomaly, no prediction": (nothing, nothing, valid, float("nan")),
        "missed": (nothing, square, valid, 0.0),
        "false alarm": (square, nothing, valid, 0.0),
        "perfect": (square, square, valid, 1.0),
        "everything void": (square, square, ~valid, float("nan")),
    }
    for name, (predicted, truth, mask, expected) in cases.items():
        counts = ComponentCounts()
        counts.add(predicted, truth, mask)
        assert counts.f1_star() == pytest.approx(expected, nan_ok=True), name
    assert np.isnan(ComponentCounts().f1_star())


def test_small_true_components_become_void():
    truth = np.zeros((60, 60), bool)
    truth[0:5, 0:5] = truth[10:30, 10:30] = True
    predicted = np.zeros_like(truth)
    predicted[0:30, 0:30] = True
    counts = ComponentCounts()
    counts.add(predicted, truth, everything(truth.shape))
    # The 25 pixels count neither as found nor as false.
    assert counts.siou == [400 / 875]
    assert counts.ppv == [400 / 875]
    counts = ComponentCounts()
    counts.add(truth, np.zeros_like(truth), everything(truth.shape))
    assert counts.siou == counts.ppv == []  # 400 pixels are too few for a prediction


def test_small_predictions_are_dropped_and_diagonals_connect():
    truth = np.zeros((80, 80), bool)
    truth[0:20, 0:20] = truth[20:40, 20:40] = True  # touch at a corner: one component
    predicted = np.zeros_like(truth)
    predicted[0:20, 0:20] = True  # 400 pixels: dropped
    counts = ComponentCounts()
    counts.add(predicted, truth, everything(truth.shape))
    assert counts.siou == [0.0]
    assert counts.ppv == []


TREE, ROCK, CAR = 1, 2, 3
FREQUENCIES = {0: 0.25, TREE: 1.0, ROCK: 0.25}


def forest():
    """(100, 100) of trees, in every training image; a rock, in a quarter; a car, in none.

    Above them four rows of void. Soft labels: 7500 of 0, 1000 of 0.75, 1100 of 1; 400 are void.
    """
    labels = np.full((100, 100), TREE, np.uint8)
    labels[:4] = 0
    labels[10:30, 10:60] = ROCK
    labels[50:72, 10:60] = CAR
    return labels


def weighted(scores, labels, frequencies=FREQUENCIES):
    counts = PaperCounts(frequencies)
    counts.add(scores.astype(np.float32), labels, labels != 0)
    return counts


def test_weighted_auc_pr_computed_by_hand():
    labels = forest()
    total = 1850  # 1000 * 0.75 + 1100
    # The car first, precision 1, then the rock, precision 1850 / 2100; trees add no recall.
    best = 1100 / total + 750 / total * (1 + 1850 / 2100) / 2
    counts = weighted(labels == CAR, labels)
    assert counts.best_area(np.ones((1, 1))) == pytest.approx([best])
    # The car alone: precision 1, then that of everything, 1850 / 9600.
    area = 1100 / total + 750 / total * (1 + 1850 / 9600) / 2
    assert counts.auc_pr() == pytest.approx(area / best)
    soft = counts.soft_labels(labels)
    assert weighted(soft, labels).auc_pr() == pytest.approx(1)
    # One threshold for all, in any sign.
    assert weighted(soft * 0 - 3, labels).auc_pr() == pytest.approx((1 + 1850 / 9600) / 2 / best)


def test_flagging_every_tree_has_a_low_weighted_auc_pr():
    """Trees weigh nothing, which must not make flagging them free."""
    labels = forest()
    best = float(weighted(labels == CAR, labels).best_area(np.ones((1, 1)))[0])
    counts = weighted(labels == TREE, labels)
    # All recall comes with the last threshold: the envelope is its precision throughout.
    assert counts.auc_pr() == pytest.approx(1850 / 9600 / best)
    assert counts.auc_pr() < 0.21
    assert counts.f1_star() == 0
    # Beside the car, all trees: 1100 of 8600, then 1850 of 9600, which the envelope takes.
    counts = weighted(labels != ROCK, labels)
    area = 1100 / 1850 * (1 + 1850 / 9600) / 2 + 750 / 1850 * 1850 / 9600
    assert counts.auc_pr() == pytest.approx(area / best)


def test_weighted_f1_star_computed_by_hand():
    """Units of the forest: void and what is small (f of void), trees, rock, car."""
    labels = forest()
    labels[90, 0:50] = ROCK  # 50 pixels are no unit
    scores = np.where(labels == CAR, 1.0, 0.0)
    scores[10:30, 10:60] = 0.35
    scores[90] = 0.45  # the small rock 0.45, in 50 of 450 pixels: mean 0.05; trees hardly any
    counts = weighted(scores, labels)
    # Soft labels: left over 0.75, trees 0, rock 0.75, car 1. At 0.2 and 0.3 rock and car are found.
    at_low = 2 * 1.75 / (2 * 1.75 + 0.25 + 0.75)
    assert counts.f1_star() == pytest.approx(at_low)
    draws = np.array([[1], [3], [0]])
    assert counts.resampled_f1_star(draws) == pytest.approx([at_low, at_low, np.nan], nan_ok=True)
    # Without the rock only the car: 2 / (2 + 1.5).
    scores[10:30, 10:60] = 0
    assert weighted(scores, labels).f1_star() == pytest.approx(2 / 3.5)
    # The thresholds are relative to the highest score of all images, void pixels among them.
    assert weighted(7 * scores, labels).f1_star() == pytest.approx(2 / 3.5)
    scores[0, 0] = 10  # 1 is a tenth of it, below the lowest threshold
    assert weighted(scores, labels).f1_star() == 0


def test_units_are_8_connected_components_of_each_class():
    labels = np.full((60, 60), TREE, np.uint8)
    labels[0:20, 0:20] = labels[20:40, 20:40] = ROCK  # touch at a corner: 800 pixels, one unit
    labels[40:60, 40:60] = CAR  # touches them, 400 pixels: left over
    scores = np.where(labels == ROCK, 1.0, 0.0)
    # Soft: rock 0.75 above; trees 0 (one component, below), the car's 1 below.
    assert weighted(scores, labels).f1_star() == pytest.approx(1.5 / (1.5 + 0.25 + 1))
    scores[20:40, 20:40] = 0  # half of the unit: its mean is 0.5
    assert weighted(scores, labels).f1_star() == pytest.approx(1.5 / (1.5 + 0.25 + 1))
    scores[0:10] = 0  # a quarter
    scores[59, 0] = 1.3  # mean 0.25 of 1.3 is below 0.2
    assert weighted(scores, labels).f1_star() == 0


def test_random_scores_reach_064_weighted_f1_star():
    """With mean soft labels of 0.47, as the units of RUGD may have: 2 m / (1 + m) = 0.64."""
    rng = np.random.default_rng(0)
    counts = PaperCounts({TREE: 0.9, ROCK: 0.16})
    for _ in range(5):
        labels = np.full((60, 100), TREE, np.uint8)
        labels[:, 50:] = ROCK
        counts.add(rng.random(labels.shape, np.float32), labels, everything(labels.shape))
    assert counts.f1_star() == pytest.approx(2 * 0.47 / 1.47)
    assert counts.f1_star() == pytest.approx(0.64, abs=0.001)


def test_weighted_metrics_need_no_anomaly():
    labels = forest()
    labels[labels == CAR] = TREE
    assert weighted(labels == ROCK, labels).auc_pr() == pytest.approx(1)
    assert weighted(labels == ROCK, labels).f1_star() == pytest.approx(1.5 / (1.5 + 0.25 + 0.75))


def test_a_class_absent_from_training_is_anomalous_throughout():
    labels = forest()
    for frequencies in (FREQUENCIES, {**FREQUENCIES, CAR: 0.0}):
        soft = PaperCounts(frequencies).soft_labels(labels)
        assert (soft[labels == CAR] == 1).all()
    # Where all are absent, or all in every image, no score tells them apart.
    assert np.isnan(weighted(labels == CAR, labels, {}).auc_pr())
    assert np.isnan(weighted(labels == CAR, labels, dict.fromkeys(range(4), 1.0)).auc_pr())
    with pytest.raises(ValueError, match=r"class 2 has frequency 1.5"):
        PaperCounts({ROCK: 1.5})


def test_weighted_metrics_of_streamed_images_are_those_of_all_pixels():
    rng = np.random.default_rng(6)
    counts, seen = PaperCounts({**FREQUENCIES, CAR: 0.05}), []
    for _ in range(3):
        labels = cv2.resize(rng.integers(0, 4, (5, 6), np.uint8), (60, 50), interpolation=0)
        scores = rng.random(labels.shape, np.float32).round(2)
        counts.add(scores, labels, labels != 0)
        seen.append((scores[labels != 0], counts.soft_labels(labels)[labels != 0]))
    scores, soft = np.concatenate(seen, 1)
    best = envelope_area_by_definition(soft, soft)
    assert counts.auc_pr() == pytest.approx(envelope_area_by_definition(scores, soft) / best)


def test_scores_without_a_positive_maximum_have_no_relative_thresholds():
    labels = forest()
    assert np.isnan(weighted(np.where(labels == CAR, -1.0, -2.0), labels).f1_star())
    assert np.isnan(PaperCounts({}).f1_star())
    assert np.isnan(PaperCounts({}).auc_pr())


def test_weighted_metrics_on_real_frames(shared_data):
    """What the authors' experiment code gave for these frames and RUGD's class frequencies."""
    dataset = open_dataset("rugd", shared_data / "rugd", "ood")
    shares = {"grass": 0.895511, "tree": 0.999613, "sky": 0.919892, "gravel": 0.70356,
              "mulch": 0.605263, "log": 0.399768, "bush": 0.415248, "void": 0.198142,
              "pole": 0.154799, "water": 0.059211}  # fmt: skip
    ids = {name: id_ for id_, name in dataset.classes.names.items()}
    trees, random = (PaperCounts({ids[n]: f for n, f in shares.items()}) for _ in range(2))
    rng = np.random.default_rng(0)
    for truth in dataset:
        trees.add((truth.labels == ids["tree"]).astype(np.float32), truth.labels, truth.valid)
        scores = rng.random(truth.labels.shape, np.float32)
        random.add(scores, truth.labels, truth.valid)
    # Classes in less than 5% of the training images count as absent here: hence not exact.
    assert trees.auc_pr() == pytest.approx(0.2959, abs=0.005)
    assert trees.f1_star() == pytest.approx(0.0071, abs=0.005)
    assert random.auc_pr() == pytest.approx(0.2961, abs=0.005)
    assert random.f1_star() == pytest.approx(0.5261, abs=0.01)
