"""Normalizing flow from a fitted Gaussian mixture to the nominal features."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from anomaly_detector_ros.baselines.base import BASELINES, Baseline, State
from anomaly_detector_ros.baselines.gmm import (
    VARIANCE_FLOOR,
    Whitening,
    check_count,
    fit_mixture,
    make_mixture,
)
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.runtime.progress import Progress

if TYPE_CHECKING:
    from zuko.lazy import LazyTransform

_BATCH = 512
_CLIP_NORM = 10.0
_TRANSFORM = "transform."


@BASELINES.register("flow")
@dataclass(frozen=True)
class Flow(Baseline):
    """Negative log-likelihood under a RealNVP flow whose base is a fitted Gaussian mixture.

    score(x) = -log p_mixture(f(z)) - log |df/dz| - log N(r; 0, I) - log |dz dr / dx|, z the leading
    and r the other principal components of x, at unit variance, f affine coupling layers (Dinh et
    al., "Density estimation using Real NVP", 2017). The mixture is fitted first and kept; f begins
    as the identity, so that training begins at the mixture's likelihood, after Ancha et al., "Deep
    Evidential Uncertainty Estimation", ICRA 2024.

    Args:
        components: Gaussians of the base, with full covariances.
        pca_dims: principal components that the flow describes, None for all; one Gaussian
            describes the rest.
        transforms: coupling layers.
        hidden_features: width of each layer's network, which has two hidden layers.
        epochs: passes over the vectors.
        learning_rate: of Adam, at the start; it falls to 0 along a cosine.
    """

    name = "flow"
    libraries = ("scikit-learn", "zuko")

    components: Annotated[int, Ge(1)] = 20
    pca_dims: Annotated[int, Ge(2)] | None = 64
    transforms: Annotated[int, Ge(1)] = 6
    hidden_features: Annotated[int, Ge(1)] = 128
    epochs: Annotated[int, Ge(1)] = 10
    learning_rate: Annotated[float, Gt(0)] = 1e-3

    def learn(self, vectors: Tensor, seed: int, progress: Progress) -> State:
        """See `Baseline`."""
        check_count(self.name, vectors, self.components)
        if vectors.shape[1] < 2:
            raise UserError("flow: features of 1 channel: a coupling layer needs at least 2")
        whitening = Whitening.fit(vectors, self.pca_dims)
        leading, _ = whitening(vectors)
        mixture = fit_mixture(leading, self.components, "full", seed, progress)
        transform = self._make_transform(whitening.dims, seed)
        self._train(transform, leading, mixture, seed, progress)
        learned = {_TRANSFORM + name: value for name, value in transform.state_dict().items()}
        whole = {"mean": whitening.mean, "projection": whitening.projection}
        return {**whole, **mixture, **learned}

    def scorer(self, state: State) -> Callable[[Tensor], Tensor]:
        """See `Baseline`."""
        mixture = make_mixture(state["weights"], state["means"], state["scales"])
        dims = state["means"].shape[1]
        whitening = Whitening(state["mean"], state["projection"], dims)
        transform = self._make_transform(dims, seed=0)
        transform.load_state_dict(
            {
                name.removeprefix(_TRANSFORM): value
                for name, value in state.items()
                if name.startswith(_TRANSFORM)
            }
        )
        transform.requires_grad_(False)

        def score(vectors: Tensor) -> Tensor:
            leading, rest = whitening(vectors)
            z, log_det = transform().call_and_ladj(leading)
            likelihood: Tensor = mixture.log_prob(z) + log_det + rest
            return -likelihood

        return score

    def _make_transform(self, dims: int, seed: int) -> LazyTransform:
        """Coupling layers over alternating halves of the dimensions; together the identity."""
        from zuko.flows import RealNVP

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            flow = RealNVP(
                dims,
                transforms=self.transforms,
                hidden_features=(self.hidden_features,) * 2,
            )
        for layer in flow.transform.transforms:
            torch.nn.init.zeros_(layer.hyper[-1].weight)
            torch.nn.init.zeros_(layer.hyper[-1].bias)
        return flow.transform

    def _train(
        self,
        transform: LazyTransform,
        vectors: Tensor,
        mixture: dict[str, Tensor],
        seed: int,
        progress: Progress,
    ) -> None:
        """Maximum likelihood by Adam."""
        base = make_mixture(**mixture)
        generator = torch.Generator().manual_seed(seed)
        steps = self.epochs * math.ceil(len(vectors) / _BATCH)
        optimizer = torch.optim.Adam(transform.parameters(), lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        step = 0
        for _ in range(self.epochs):
            for indices in torch.randperm(len(vectors), generator=generator).split(_BATCH):
                batch = vectors[indices]
                # 8-bit colours lie on a grid, on whose points the density has no bound.
                noise = torch.randn(batch.shape, generator=generator) * VARIANCE_FLOOR**0.5
                z, log_det = transform().call_and_ladj(batch + noise)
                loss = -(base.log_prob(z) + log_det).mean()
                if not torch.isfinite(loss):
                    raise UserError("flow: training diverged: lower learning_rate")
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(transform.parameters(), _CLIP_NORM)
                optimizer.step()
                schedule.step()
                step += 1
                progress(step, steps, f"flow, loss {float(loss.detach()):.2f}")
