"""Gaussian mixture of the nominal features."""

from __future__ import annotations

from torch import Tensor

from anomaly_detector_ros.baselines.base import Baseline, Progress, State, one_of, whole_number
from anomaly_detector_ros.baselines.mixture import COVARIANCE_TYPES, fit_mixture, make_mixture
from anomaly_detector_ros.baselines.whitening import Whitening
from anomaly_detector_ros.errors import UserError


class GmmBaseline(Baseline):
    """Negative log-likelihood under a mixture of Gaussians.

    score(x) = -log sum_k w_k N(z; mu_k, Sigma_k) - log N(r; 0, I) - log |dz dr / dx|, z the leading
    and r the other principal components of x, at unit variance.

    Args:
        components: Gaussians in the mixture; 20 in the paper.
        covariance_type: full or diag.
        pca_dims: principal components that the mixture describes; one Gaussian describes the
            rest. None: all of them, for which EM takes, with full covariances, time in the square
            of the channels.
    """

    name = "gmm"
    libraries = ("scikit-learn",)

    def __init__(
        self, *, components: int = 20, covariance_type: str = "full", pca_dims: int | None = 64
    ) -> None:
        self.components = whole_number(self.name, "components", components)
        self.covariance_type = one_of(
            self.name, "covariance_type", covariance_type, COVARIANCE_TYPES
        )
        if pca_dims is not None:
            whole_number(self.name, "pca_dims", pca_dims)
        self.pca_dims = pca_dims
        super().__init__(components=components, covariance_type=covariance_type, pca_dims=pca_dims)

    def _learn(self, vectors: Tensor, seed: int, progress: Progress) -> State:
        check_count(self.name, vectors, self.components)
        whitening = Whitening.fit(vectors, self.pca_dims)
        leading, _ = whitening(vectors)
        mixture = fit_mixture(leading, self.components, self.covariance_type, seed, progress)
        return {"mean": whitening.mean, "projection": whitening.projection, **mixture}

    def _restore(self, state: State) -> None:
        self._mixture = make_mixture(state["weights"], state["means"], state["scales"])
        dims = state["means"].shape[1]
        self._whitening = Whitening(state["mean"], state["projection"], dims)

    def _score_vectors(self, vectors: Tensor) -> Tensor:
        leading, rest = self._whitening(vectors)
        return -(self._mixture.log_prob(leading) + rest)


def check_count(name: str, vectors: Tensor, components: int) -> None:
    """UserError where there are fewer vectors than Gaussians."""
    if len(vectors) < max(2, components):
        raise UserError(
            f"{name}: {len(vectors)} feature vectors for {components} components: give more images"
        )
