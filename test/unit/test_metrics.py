"""Pixel and component metrics."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from anomaly_detector_ros.evaluation.metrics import pixels
from anomaly_detector_ros.evaluation.metrics.components import (
    ComponentCounts,
    WeightedComponents,
    pixel_weights,
)
from anomaly_detector_ros.evaluation.metrics.pixels import PixelCounts


def everything(shape):
    return np.ones(shape, bool)


def count(scores, truth, weights=None):
    """Counts one image without void."""
    counts = PixelCounts()
    counts.add(scores, truth, everything(scores.shape), weights)
    return counts


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
    fpr, tpr, _ = roc_curve(labels, flat, drop_intermediate=False)
    assert result.fpr95 == pytest.approx(fpr[np.searchsorted(tpr, 0.95)], abs=1e-12)
    assert result.anomaly_share == pytest.approx(labels.mean())
    predicted = flat >= np.float32(result.best_threshold)
    f1 = 2 * (predicted & labels).sum() / (predicted.sum() + labels.sum())
    assert result.best_f1 == pytest.approx(f1, abs=1e-12)


@pytest.mark.parametrize("kind", kinds_of_scores())
def test_weighted_pixel_metrics_match_scikit_learn(kind):
    rng = np.random.default_rng(3)
    truth = rng.random((60, 80)) < 0.1
    scores = kinds_of_scores()[kind].astype(np.float32)
    weights = rng.random((60, 80))
    result = count(scores, truth, weights).result()
    flat, labels, weights = scores.ravel(), truth.ravel(), weights.ravel()
    expected = average_precision_score(labels, flat, sample_weight=weights)
    assert result.auc_pr == pytest.approx(expected, abs=1e-12)
    expected = roc_auc_score(labels, flat, sample_weight=weights)
    assert result.auroc == pytest.approx(expected, abs=1e-12)


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
    assert streamed.highest == whole.highest == scores.max()
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
    assert counts.result().auc_pr == 1
    assert counts.highest == 1


@pytest.mark.parametrize("value", [True, False])
def test_one_class_alone_gives_nan(value):
    truth = np.full((4, 4), value)
    result = count(np.zeros((4, 4)), truth).result()
    assert np.isnan([result.auc_pr, result.auroc, result.fpr95, result.best_threshold]).all()
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


def test_unfit_sizes_and_weights_are_refused():
    with pytest.raises(ValueError, match=r"scores are \(2, 3\), the truth \(2, 2\)"):
        count(np.zeros((2, 3)), everything((2, 2)))
    with pytest.raises(ValueError, match=r"weights are \(3,\)"):
        count(np.zeros((2, 2)), everything((2, 2)), np.ones(3))
    with pytest.raises(ValueError, match="not negative"):
        count(np.zeros((2, 2)), everything((2, 2)), np.full((2, 2), -1.0))


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


def component_scores_by_definition(predicted, truth, weights):
    """The definitions taken literally, component by component; none is too small here."""
    from scipy.ndimage import label

    truth, _ = label(truth, np.ones((3, 3)))
    predicted, _ = label(predicted, np.ones((3, 3)))
    siou, ppv = [], []
    for k in range(1, truth.max() + 1):
        here = truth == k
        union = np.isin(predicted, np.setdiff1d(predicted[here], 0))
        others = union & (truth > 0) & ~here
        siou.append(
            weights[here & union].sum() / (weights[here | union].sum() - weights[others].sum())
        )
    for p in range(1, predicted.max() + 1):
        of = predicted == p
        ppv.append(weights[of & (truth > 0)].sum() / weights[of].sum())
    return siou, ppv


def test_component_scores_equal_their_definitions(monkeypatch):
    for name in ("MIN_PREDICTED", "MIN_TRUTH"):
        monkeypatch.setattr(f"anomaly_detector_ros.evaluation.metrics.components.{name}", 1)
    rng = np.random.default_rng(5)
    for _ in range(20):
        predicted, truth = rng.random((2, 25, 30)) < 0.25
        for weights in (None, 0.1 + rng.random((25, 30))):
            counts = ComponentCounts()
            counts.add(predicted, truth, everything(truth.shape), weights)
            of = np.ones((25, 30)) if weights is None else weights
            siou, ppv = component_scores_by_definition(predicted, truth, of)
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


def weighted_scene():
    """Sky (id 1) in every training image, rock (2) in a quarter of them, a car (3)."""
    labels = np.ones((100, 100), np.uint8)
    labels[:, 50:] = 2
    labels[10:50, 30:70] = 3
    scores = np.full((100, 100), 0.1, np.float32)
    scores[10:50, 20:80] = 0.5  # the car, 400 pixels of sky, 400 of rock
    scores[70:100, 0:30] = 0.4  # sky alone: weighs nothing
    scores[70:100, 60:90] = 0.3  # rock alone
    scores[0, 0] = 1.0
    return scores, labels == 3, labels, {1: 1.0, 2: 0.25}


def test_pixel_weights():
    _, anomaly, labels, frequencies = weighted_scene()
    weights = pixel_weights(labels, anomaly, frequencies)
    assert weights[0, 0] == 0
    assert weights[0, 99] == 0.75
    assert weights[20, 40] == 1
    # A class that no training image holds weighs all; an anomaly does whatever its label.
    assert (pixel_weights(labels, anomaly, {}) == 1).all()
    assert pixel_weights(labels, anomaly, {3: 1.0})[20, 40] == 1
    with pytest.raises(ValueError, match=r"class 2 has frequency 1.5"):
        pixel_weights(labels, anomaly, {2: 1.5})


def test_weighted_f1_star_computed_by_hand():
    scores, anomaly, labels, frequencies = weighted_scene()
    weights = pixel_weights(labels, anomaly, frequencies)
    counts = WeightedComponents(float(scores.max()))
    counts.add(scores, anomaly, everything(anomaly.shape), weights)
    # Car and band: 1600 of 1600 + 400 * 0.75 + 400 * 0 = 1900 weigh 16/19 on both sides.
    at_04 = counts.counts[2]
    assert at_04.siou == pytest.approx([16 / 19])
    assert at_04.ppv == pytest.approx([16 / 19])  # the sky component is gone
    assert at_04.f1_star() == 1  # 16/19 > 0.75
    # At 0.3 and 0.2 the rock component is a false positive throughout: 2 / 3.
    assert counts.counts[1].f1_star() == counts.counts[0].f1_star() == pytest.approx(2 / 3)
    assert counts.counts[4].f1_star() == 0  # nothing but one pixel at 0.6
    assert counts.best().f1_star() == 1
    # Without weights the band and the sky count: 16/24 up to 0.65, nothing above.
    plain = ComponentCounts()
    plain.add(scores >= 0.4, anomaly, everything(anomaly.shape))
    assert plain.siou == pytest.approx([16 / 24])
    assert plain.f1_star() == pytest.approx(9 / 11 * 2 / 3)


def test_weighted_auc_pr_computed_by_hand():
    scores, anomaly, labels, frequencies = weighted_scene()
    weights = pixel_weights(labels, anomaly, frequencies)
    # The pixel at 1.0 is sky and weighs nothing; then 1600 with 400 * 0.75 of rock.
    assert count(scores, anomaly, weights).result().auc_pr == pytest.approx(16 / 19)
    # A perfect scorer reaches 1, whatever the weights: the value that the paper divides by.
    assert count(anomaly.astype(float), anomaly, weights).result().auc_pr == 1
    only_sky = np.where(labels == 1, 0.0, anomaly)
    assert np.isnan(count(scores, anomaly, only_sky).result().auc_pr)


def test_scores_without_a_positive_maximum_have_no_relative_thresholds():
    scores, anomaly, _, _ = weighted_scene()
    counts = WeightedComponents(-0.5)
    counts.add(scores - 2, anomaly, everything(anomaly.shape), np.ones(anomaly.shape))
    assert np.isnan(counts.best().f1_star())
