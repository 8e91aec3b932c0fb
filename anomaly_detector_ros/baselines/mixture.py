"""Gaussian mixtures: fitted by scikit-learn's EM, evaluated by torch."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
)

from anomaly_detector_ros.baselines.base import Progress

COVARIANCE_TYPES = ("full", "diag")
VARIANCE_FLOOR = 1e-4
"""Added to each variance, of whitened vectors: a cluster of equal vectors is no infinite peak."""

_MAX_ITERATIONS = 100
# Of the mean log-likelihood of a vector, whose scale is tens to hundreds.
_TOLERANCE = 1e-2
# scikit-learn has no callback, and each restart of EM costs half an iteration.
_ITERATIONS_A_REPORT = 5


def fit_mixture(
    vectors: Tensor, components: int, covariance_type: str, seed: int, progress: Progress
) -> dict[str, Tensor]:
    """Maximum likelihood by expectation maximisation, begun with k-means.

    Args:
        vectors: (N, D), whitened; N at least ``components``.
        components: K.
        covariance_type: full, or diag for diagonal covariances.
        seed: of k-means.
        progress: see `base.Progress`.

    Returns:
        ``weights`` (K,), ``means`` (K, D) and ``scales``: lower Cholesky factors (K, D, D) of the
        covariances, or standard deviations (K, D); float32.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    model = GaussianMixture(
        components,
        covariance_type=covariance_type,
        reg_covar=VARIANCE_FLOOR,
        max_iter=_ITERATIONS_A_REPORT,
        tol=_TOLERANCE,
        warm_start=True,
        random_state=seed,
    )
    data = vectors.double().numpy()
    progress(0, _MAX_ITERATIONS, "mixture")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for done in range(_ITERATIONS_A_REPORT, _MAX_ITERATIONS + 1, _ITERATIONS_A_REPORT):
            model.fit(data)
            progress(done, _MAX_ITERATIONS, f"mixture, log-likelihood {model.lower_bound_:.2f}")
            if model.converged_:
                break
    progress(_MAX_ITERATIONS, _MAX_ITERATIONS, "mixture")
    covariances = torch.from_numpy(model.covariances_)
    full = covariance_type == "full"
    scales = torch.linalg.cholesky(covariances) if full else covariances.sqrt()
    return {
        "weights": torch.from_numpy(model.weights_).float(),
        "means": torch.from_numpy(model.means_).float(),
        "scales": scales.float().contiguous(),
    }


def make_mixture(weights: Tensor, means: Tensor, scales: Tensor) -> Distribution:
    """The distribution of parameters as `fit_mixture` returns them."""
    if scales.ndim == 3:
        parts = MultivariateNormal(means, scale_tril=scales, validate_args=False)
    else:
        parts = Independent(Normal(means, scales, validate_args=False), 1, validate_args=False)
    return MixtureSameFamily(Categorical(weights), parts, validate_args=False)
