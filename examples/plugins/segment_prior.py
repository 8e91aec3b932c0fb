"""A prior on segments of the input, SAM's or others: each changes as a whole, or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Gt
from torch import Tensor
from torch.nn.functional import logsigmoid

from anomaly_detector_ros.runtime.tensors import to_pictures
from anomaly_detector_ros.segmentation.base import SEGMENTERS
from anomaly_detector_ros.synthesis.similarity import SIMILARITIES, Similarity
from anomaly_detector_ros.weights.loading import Loader
from anomaly_detector_ros.weights.registry import Registry


@SIMILARITIES.register("segment_prior")
@dataclass(frozen=True)
class SegmentPrior(Similarity):
    """log r_sim = guidance_scale * mean over segments of log(e^I + e^O); images, not latents.

    I and O are sums over the segment, divided by the image's pixels, of the log score of a pixel
    being as in the input (in every channel) and of one having changed (in any).

    Attributes:
        segmenter: its ``name`` and settings, such as {name: mobile_sam, mode: automatic}.
        width: of what passes for the same, in [0, 2].
        steepness: of its soft edges.
    """

    segmenter: Mapping[str, Any] = field(default_factory=lambda: {"name": "superpixels"})
    width: Annotated[float, Gt(0)] = 0.4
    steepness: Annotated[float, Gt(0)] = 10.0

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        """See `Similarity.log_prob`; the gradient is found by automatic differentiation."""
        up, down = (self.steepness * (self.width / 2 + sign * (x - y)) for sign in (1, -1))
        same = (logsigmoid(up) + logsigmoid(down)).sum(1)
        changed = torch.logaddexp(logsigmoid(-up), logsigmoid(-down)).logsumexp(1)
        settings = json.dumps(dict(self.segmenter))
        found = []
        for i, picture in enumerate(to_pictures(y)):
            masks = segment_masks(picture.tobytes(), picture.shape, settings).to(x)
            both = [masks @ each[i].flatten() / masks.shape[1] for each in (same, changed)]
            found.append(torch.logaddexp(*both).mean())
        return self.guidance_scale * torch.stack(found)


@lru_cache(maxsize=16)
def segment_masks(pixels: bytes, shape: tuple[int, ...], segmenter: str) -> Tensor:
    """Segments of uint8 RGB pixels (H, W, 3) as bool (N, H W)."""
    image = np.frombuffer(pixels, np.uint8).reshape(shape)
    built = SEGMENTERS.read(json.loads(segmenter)).build(
        Loader(Registry.default(), torch.device("cpu"))
    )
    ids = built.segment(image, np.zeros(shape[:2], np.float32)).ravel()
    return torch.from_numpy(ids == np.unique(ids[ids > 0])[:, None])
