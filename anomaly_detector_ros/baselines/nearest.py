"""Distance to the nearest nominal feature vector."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_detector_ros.baselines.base import Baseline, Progress, State, one_of, whole_number
from anomaly_detector_ros.errors import UserError


class NearestBaseline(Baseline):
    """Mean distance to the k nearest of the nominal feature vectors, searched exactly.

    Keeps all vectors it is fitted on, 50,000 in the paper.

    Args:
        metric: cosine, 1 - the cosine of the angle, in [0, 2], by which edits are compared too; or
            l2, the Euclidean distance.
        k: neighbours whose distances are averaged.
    """

    name = "nearest"
    libraries = ("faiss-cpu",)

    def __init__(self, *, metric: str = "cosine", k: int = 1) -> None:
        self.metric = one_of(self.name, "metric", metric, ("cosine", "l2"))
        self.k = whole_number(self.name, "k", k)
        super().__init__(metric=metric, k=k)

    def _learn(self, vectors: Tensor, seed: int, progress: Progress) -> State:
        if len(vectors) < self.k:
            raise UserError(f"nearest: {len(vectors)} feature vectors for k = {self.k}: give more")
        bank = F.normalize(vectors, dim=1) if self.metric == "cosine" else vectors.clone()
        progress(1, 1, "bank")
        return {"bank": bank.contiguous()}

    def _restore(self, state: State) -> None:
        self._bank = state["bank"].numpy()

    def _score_vectors(self, vectors: Tensor) -> Tensor:
        import faiss

        # Rounding makes a vector more than equal to itself: a cosine over 1, a square under 0.
        if self.metric == "cosine":
            queries = F.normalize(vectors, dim=1).numpy()
            cosines, _ = faiss.knn(queries, self._bank, self.k, faiss.METRIC_INNER_PRODUCT)
            return (1 - torch.from_numpy(cosines)).clamp(0, 2).mean(1)
        squares, _ = faiss.knn(vectors.contiguous().numpy(), self._bank, self.k, faiss.METRIC_L2)
        return torch.from_numpy(squares).clamp(min=0).sqrt().mean(1)
