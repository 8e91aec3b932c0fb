"""Normalizing flow from a fitted Gaussian mixture to the nominal features."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anomaly_detector_ros.baselines.base import Baseline, Progress, State, whole_number
from anomaly_detector_ros.baselines.gmm import check_count
from anomaly_detector_ros.baselines.mixture import VARIANCE_FLOOR, fit_mixture, make_mixture
from anomaly_detector_ros.baselines.whitening import Whitening
from anomaly_detector_ros.errors import UserError

if TYPE_CHECKING:
    from zuko.lazy import LazyTransform

_BATCH = 512
_CLIP_NORM = 10.0
_TRANSFORM = "transform."


class FlowBaseline(Baseline):
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

    def __init__(
        self,
        *,
        components: int = 20,
        pca_dims: int | None = 64,
        transforms: int = 6,
        hidden_features: int = 128,
        epochs: int = 10,
        learning_rate: float = 1e-3,
    ) -> None:
        self.components = whole_number(self.name, "components", components)
        if pca_dims is not None:
            whole_number(self.name, "pca_dims", pca_dims, minimum=2)
        self.pca_dims = pca_dims
        self.transforms = whole_number(self.name, "transforms", transforms)
        self.hidden_features = whole_number(self.name, "hidden_features", hidden_features)
        self.epochs = whole_number(self.name, "epochs", epochs)
        if not isinstance(learning_rate, (int, float)) or not learning_rate > 0:
            raise UserError(f"flow: learning_rate {learning_rate!r}: take a number over 0")
        self.learning_rate = learning_rate
        super().__init__(
            components=components,
            pca_dims=pca_dims,
            transforms=transforms,
            hidden_features=hidden_features,
            epochs=epochs,
            learning_rate=learning_rate,
        )

    def _learn(self, vectors: Tensor, seed: int, progress: Progress) -> State:
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

    def _restore(self, state: State) -> None:
        self._mixture = make_mixture(state["weights"], state["means"], state["scales"])
        dims = state["means"].shape[1]
        self._whitening = Whitening(state["mean"], state["projection"], dims)
        self._transform = self._make_transform(dims, seed=0)
        learned = {
            name.removeprefix(_TRANSFORM): value
            for name, value in state.items()
            if name.startswith(_TRANSFORM)
        }
        self._transform.load_state_dict(learned)
        self._transform.requires_grad_(False)

    def _score_vectors(self, vectors: Tensor) -> Tensor:
        leading, rest = self._whitening(vectors)
        z, log_det = self._transform().call_and_ladj(leading)
        return -(self._mixture.log_prob(z) + log_det + rest)

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
