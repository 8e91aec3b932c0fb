"""Feature vectors split into a few leading principal components and the nearly Gaussian rest."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Variance, relative to the largest, below which a direction counts as having none.
_SMALLEST_VARIANCE = 1e-6


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
