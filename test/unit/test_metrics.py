import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from anomaly_detector_ros.evaluation.components import ComponentCounts
from anomaly_detector_ros.evaluation.pixels import PixelCounts


def everything(shape):
    return np.ones(shape, bool)


def test_pixel_metrics_match_scikit_learn_over_several_images():
    rng = np.random.default_rng(0)
    counts = PixelCounts()
    pooled_scores, pooled_truth = [], []
    for share in (0.02, 0.1, 0.0):
        truth = rng.random((60, 80)) < share
        scores = np.clip(rng.random((60, 80)) + 0.4 * truth, 0, 1).astype(np.float32)
        valid = rng.random((60, 80)) < 0.9
        counts.add(scores, truth, valid)
        pooled_scores.append(scores[valid])
        pooled_truth.append(truth[valid])
    scores, truth = np.concatenate(pooled_scores), np.concatenate(pooled_truth)
    result = counts.result()
    assert result.auc_pr == pytest.approx(average_precision_score(truth, scores), abs=1e-4)
    assert result.auroc == pytest.approx(roc_auc_score(truth, scores), abs=1e-4)
    fpr, tpr, _ = roc_curve(truth, scores)
    assert result.fpr95 == pytest.approx(fpr[np.searchsorted(tpr, 0.95)], abs=2e-3)
    assert result.anomaly_share == pytest.approx(truth.mean())
    predicted = scores >= result.best_threshold
    f1 = 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum())
    assert result.best_f1 == pytest.approx(f1, abs=1e-3)


def test_void_pixels_do_not_count():
    truth = np.zeros((10, 10), bool)
    truth[:5] = True
    scores = truth.astype(np.float32)
    scores[5] = 1  # all wrong, all void
    valid = everything(truth.shape)
    valid[5] = False
    counts = PixelCounts()
    counts.add(scores, truth, valid)
    assert counts.result().auc_pr == 1


@pytest.mark.parametrize("value", [True, False])
def test_one_class_alone_gives_nan(value):
    counts = PixelCounts()
    counts.add(np.zeros((4, 4)), np.full((4, 4), value), everything((4, 4)))
    assert np.isnan(counts.result().auc_pr)
    counts = PixelCounts()
    counts.add(np.zeros((4, 4)), np.full((4, 4), value), ~everything((4, 4)))
    assert np.isnan(counts.result().auc_pr)


def test_scores_out_of_range_are_refused():
    for bad in (-0.1, 2.1, np.nan):
        with pytest.raises(ValueError, match=r"\[0, 2\]"):
            PixelCounts().add(np.full((2, 2), bad), *[everything((2, 2))] * 2)


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


def test_small_true_components_become_void():
    truth = np.zeros((60, 60), bool)
    truth[0:5, 0:5] = True
    predicted = np.zeros_like(truth)
    predicted[0:30, 0:30] = True
    counts = ComponentCounts()
    counts.add(predicted, truth, everything(truth.shape))
    assert counts.siou == []
    assert counts.ppv == [0.0]
