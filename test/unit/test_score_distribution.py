"""The distribution of nominal scores."""

from __future__ import annotations

import numpy as np
import pytest
from support.calibration_data import pooled

from anomaly_detector_ros.errors import UserError


def test_known_samples_have_their_exact_share():
    samples = np.random.default_rng(0).permutation(1000).astype(np.float32)
    distribution = pooled(samples[:300].reshape(30, 10), samples[300:])
    np.testing.assert_allclose(distribution(np.arange(1000)), np.arange(1000) / 1000, atol=1e-15)
    assert distribution(-1) == 0
    assert distribution(10.5) == pytest.approx(0.0105)


def test_equal_scores_count_as_not_lower():
    distribution = pooled(np.float32([0] * 6 + [1] * 3 + [2]))
    np.testing.assert_allclose(distribution(np.float32([0, 1, 2])), [0, 0.6, 0.9])


def test_the_share_of_many_samples_is_close_down_to_one_in_a_million():
    rng = np.random.default_rng(1)
    images = [rng.exponential(size=300_000).astype(np.float32) for _ in range(8)]
    distribution = pooled(*images)
    every = np.sort(np.concatenate(images))
    for share in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5):
        score = every[-round(share * every.size)]
        assert 1 - distribution(score) == pytest.approx(share, rel=0.03)
    assert np.abs(distribution(every[::997]) - np.arange(every.size)[::997] / every.size).max() < (
        2e-3
    )
    assert len(distribution.scores) < 2000


def test_values_never_fall_and_rise_beyond_the_highest_score():
    nominal = np.random.default_rng(2).gamma(2.0, size=20_000)
    distribution = pooled(nominal)
    scores = np.linspace(-1, nominal.max() * 2, 5000)
    values = distribution(scores)
    assert (np.diff(values) >= 0).all()
    assert (np.diff(values[scores > nominal.min()]) > 0).all()
    assert values.min() == 0
    assert values.max() <= 1
    beyond = nominal.max() + np.arange(5) * distribution.tail_scale / 2
    assert (np.diff(distribution(beyond).astype(np.float32)) > 0).all()
    # The tail of a gamma distribution falls about as fast as an exponential of scale 1.
    assert distribution.tail_scale == pytest.approx(1.1, abs=0.25)
    assert distribution(1e30) == 1


def test_scores_that_are_alike_or_not_finite_are_refused():
    with pytest.raises(UserError, match="alike"):
        pooled(np.ones(9))
    with pytest.raises(UserError, match="no nominal image"):
        pooled()
    with pytest.raises(ValueError, match="not finite"):
        pooled(np.array([1, np.nan]))
