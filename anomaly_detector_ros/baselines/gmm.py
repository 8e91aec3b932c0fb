"""Gaussian mixture of the nominal features: fitted by scikit-learn's EM, evaluated by torch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
)

from anomaly_detector_ros.baselines.base import BASELINES, Baseline, State
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.runtime.progress import Progress

VARIANCE_FLOOR = 1e-4
"""Added to each variance, of whitened vectors: a cluster of equal vectors is no infinite peak."""

# Of the mean log-likelihood of a vector, whose scale is tens to hundreds.
_TOLERANCE = 1e-2
# scikit-learn has no callback, and each restart of EM costs half an iteration.
_ITERATIONS_A_REPORT = 5
# Variance, relative to the largest, below which a direction counts as having none.
_SMALLEST_VARIANCE = 1e-6


@BASELINES.register("gmm")
@dataclass(frozen=True)
class Gmm(Baseline):
    """Negative log-likelihood under a mixture of Gaussians.

    score(x) = -log sum_k w_k N(z; mu_k, Sigma_k) - log N(r; 0, I) - log |dz dr / dx|, z the leading
    and r the other principal components of x, at unit variance.

    Args:
        components: Gaussians in the mixture; 20 in the paper.
        covariance_type: full, or diag for diagonal covariances.
        pca_dims: principal components that the mixture describes; one Gaussian describes the
            rest. None: all of them, for which EM takes, with full covariances, time in the square
            of the channels.
        whiten: False fits the vectors as they are, all dimensions of them, and as scikit-learn
            does it unasked (no scaling, variances raised by 1e-6, a tolerance of 1e-3).
        max_iterations: of EM.
    """

    name = "gmm"
    libraries = ("scikit-learn",)

    components: Annotated[int, Ge(1)] = 20
    covariance_type: Literal["full", "diag"] = "full"
    pca_dims: Annotated[int, Ge(1)] | None = 64
    whiten: bool = True
    max_iterations: Annotated[int, Ge(1)] = 100

    def learn(self, vectors: Tensor, seed: int, progress: Progress) -> State:
        """See `Baseline`."""
        check_count(self.name, vectors, self.components)
        kind = (self.components, self.covariance_type)
        if not self.whiten:
            whitening = Whitening.none(vectors.shape[1])
            mixture = fit_plain_mixture(vectors, *kind, seed, progress, self.max_iterations)
        else:
            whitening = Whitening.fit(vectors, self.pca_dims)
            leading, _ = whitening(vectors)
            mixture = fit_mixture(leading, *kind, seed, progress, self.max_iterations)
        return {"mean": whitening.mean, "projection": whitening.projection, **mixture}

    def scorer(self, state: State) -> Callable[[Tensor], Tensor]:
        """See `Baseline`."""
        mixture = make_mixture(state["weights"], state["means"], state["scales"])
        whitening = Whitening(state["mean"], state["projection"], state["means"].shape[1])

        def score(vectors: Tensor) -> Tensor:
            leading, rest = whitening(vectors)
            return -(mixture.log_prob(leading) + rest)

        return score


def check_count(name: str, vectors: Tensor, components: int) -> None:
    """UserError where there are fewer vectors than Gaussians."""
    if len(vectors) < max(2, components):
        raise UserError(
            f"{name}: {len(vectors)} feature vectors for {components} components: give more images"
        )


class Whitening:
    """z = (x - mean) projection: principal components, each divided by its standard deviation.

    The leading components are left to a density model. The rest count as independent Gaussians:
    dropping them would lose what leaves the nominal subspace, which is what anomalies do.

    Args:
        mean: (C,).
        projection: (C, C), eigenvectors of the covariance by falling eigenvalue, each over the
            square root of it.
        dims: how many components lead, at most C.
    """

    def __init__(self, mean: Tensor, projection: Tensor, dims: int) -> None:
        self.mean, self.projection, self.dims = mean, projection, dims
        rest = len(mean) - dims
        # The columns are orthogonal: their lengths multiply to the change of volume.
        log_volume = projection.double().norm(dim=0).log().sum()
        self._log_constant = float(log_volume) - rest / 2 * math.log(2 * math.pi)

    @classmethod
    def none(cls, channels: int) -> Whitening:
        """Vectors as they are; all components lead."""
        return cls(torch.zeros(channels), torch.eye(channels), channels)

    @classmethod
    def fit(cls, vectors: Tensor, dims: int | None) -> Whitening:
        """The principal components of vectors (N, C); all of them lead if ``dims`` is None."""
        vectors = vectors.double()
        mean = vectors.mean(0)
        centred = vectors - mean
        variances, directions = torch.linalg.eigh(centred.T @ centred / len(vectors))
        variances, directions = variances.flip(0), directions.flip(1)
        floor = max(float(variances[0]) * _SMALLEST_VARIANCE, 1e-30)
        projection = directions / variances.clamp(min=floor).sqrt()
        channels = len(mean)
        return cls(mean.float(), projection.float().contiguous(), min(dims or channels, channels))

    def __call__(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors x (N, C) -> leading components z (N, dims) and log p(x) - log p(z), (N,)."""
        whitened = (vectors - self.mean) @ self.projection
        rest = whitened[:, self.dims :].square().sum(1) / 2
        return whitened[:, : self.dims], self._log_constant - rest


def fit_mixture(
    vectors: Tensor,
    components: int,
    covariance_type: str,
    seed: int,
    progress: Progress,
    max_iterations: int = 100,
    *,
    variance_floor: float = VARIANCE_FLOOR,
    tolerance: float = _TOLERANCE,
) -> dict[str, Tensor]:
    """Maximum likelihood by expectation maximisation, begun with k-means.

    Args:
        vectors: (N, D), whitened unless the last two arguments suit others; N at least
            ``components``.
        components: K.
        covariance_type: full, or diag for diagonal covariances.
        seed: of k-means.
        progress: see `Progress`.
        max_iterations: of EM.
        variance_floor: added to each variance.
        tolerance: EM ends where the mean log-likelihood of a vector gains less in an iteration.

    Returns:
        ``weights`` (K,), ``means`` (K, D) and ``scales``: lower Cholesky factors (K, D, D) of the
        covariances, or standard deviations (K, D); float32.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    model = GaussianMixture(
        components,
        covariance_type=covariance_type,
        reg_covar=variance_floor,
        max_iter=min(_ITERATIONS_A_REPORT, max_iterations),
        tol=tolerance,
        warm_start=True,
        random_state=seed,
    )
    data = vectors.double().numpy()
    progress(0, max_iterations, "mixture")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for done in range(model.max_iter, max_iterations + 1, model.max_iter):
            model.fit(data)
            progress(done, max_iterations, f"mixture, log-likelihood {model.lower_bound_:.2f}")
            if model.converged_:
                break
    progress(max_iterations, max_iterations, "mixture")
    covariances = torch.from_numpy(model.covariances_)
    full = covariance_type == "full"
    scales = torch.linalg.cholesky(covariances) if full else covariances.sqrt()
    return {
        "weights": torch.from_numpy(model.weights_).float(),
        "means": torch.from_numpy(model.means_).float(),
        "scales": scales.float().contiguous(),
    }


# As scikit-learn has them, for vectors as they are.
fit_plain_mixture = partial(fit_mixture, variance_floor=1e-6, tolerance=1e-3)


def make_mixture(weights: Tensor, means: Tensor, scales: Tensor) -> Distribution:
    """The distribution of parameters as `fit_mixture` returns them."""
    parts: Distribution
    if scales.ndim == 3:
        parts = MultivariateNormal(means, scale_tril=scales, validate_args=False)
    else:
        parts = Independent(Normal(means, scales, validate_args=False), 1, validate_args=False)
    return MixtureSameFamily(Categorical(weights), parts, validate_args=False)
