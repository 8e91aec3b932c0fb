"""Distance to the nearest nominal feature vector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from anomaly_detector_ros.baselines.base import BASELINES, Baseline, State
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.runtime.progress import Progress


@BASELINES.register("nearest")
@dataclass(frozen=True)
class Nearest(Baseline):
    """Mean distance to the k nearest of the nominal feature vectors, searched exactly.

    Keeps all vectors it is fitted on, 50,000 in the paper.

    Args:
        metric: cosine, 1 - the cosine of the angle, in [0, 2], by which edits are compared too; or
            l2, the Euclidean distance.
        k: neighbours whose distances are averaged.
    """

    name = "nearest"
    libraries = ("faiss-cpu",)

    metric: Literal["cosine", "l2"] = "cosine"
    k: Annotated[int, Ge(1)] = 1

    def learn(self, vectors: Tensor, seed: int, progress: Progress) -> State:
        """See `Baseline`."""
        if len(vectors) < self.k:
            raise UserError(f"nearest: {len(vectors)} feature vectors for k = {self.k}: give more")
        bank = F.normalize(vectors, dim=1) if self.metric == "cosine" else vectors.clone()
        progress(1, 1, "bank")
        return {"bank": bank.contiguous()}

    def scorer(self, state: State) -> Callable[[Tensor], Tensor]:
        """See `Baseline`."""
        import faiss

        bank = state["bank"].numpy()

        # Rounding makes a vector more than equal to itself: a cosine over 1, a square under 0.
        def cosine(vectors: Tensor) -> Tensor:
            queries = F.normalize(vectors, dim=1).numpy()
            cosines, _ = faiss.knn(queries, bank, self.k, faiss.METRIC_INNER_PRODUCT)
            return (1 - torch.from_numpy(cosines)).clamp(0, 2).mean(1)

        def euclidean(vectors: Tensor) -> Tensor:
            squares, _ = faiss.knn(vectors.contiguous().numpy(), bank, self.k, faiss.METRIC_L2)
            return torch.from_numpy(squares).clamp(min=0).sqrt().mean(1)

        return cosine if self.metric == "cosine" else euclidean
