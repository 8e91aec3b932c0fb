"""A hard constraint after every step of Algorithm 1: segments are as in the input, or outside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomaly_detector_ros.runtime.tensors import to_pictures
from anomaly_detector_ros.segmentation.base import SEGMENTERS
from anomaly_detector_ros.synthesis.denoisers.base import Denoiser
from anomaly_detector_ros.synthesis.samplers import SAMPLERS, diffusion_time
from anomaly_detector_ros.synthesis.samplers.algorithm1 import Algorithm1
from anomaly_detector_ros.synthesis.similarity import Similarity
from anomaly_detector_ros.weights.loading import Loader
from anomaly_detector_ros.weights.registry import Registry


@SAMPLERS.register("segments_in_or_out")
@dataclass(frozen=True)
class SegmentsInOrOut(Algorithm1):
    """At least half a segment within ``window`` of the input: all of it goes there; else none.

    A pixel is within the window where every channel is; those that must leave it go to its nearest
    edge in every channel. Pixels without a segment stay as they are. Images, not latents.

    Attributes:
        window: its width, in [-1, 1], at the noisiest time and at the clean image.
        segmenter: its ``name`` and settings, such as {name: mobile_sam, mode: automatic}.
    """

    window: tuple[float, float] = (2.0, 0.2)
    segmenter: Mapping[str, Any] = field(default_factory=lambda: {"name": "superpixels"})

    def correct(
        self,
        denoiser: Denoiser,
        kernel: Similarity,
        x: Tensor,
        x_input: Tensor,
        t: int,
        generator: torch.Generator | None,
    ) -> Tensor:
        """See `StepwiseSampler`."""
        first, last = self.window
        half = (last + (first - last) * diffusion_time(denoiser.schedule, t)) / 2
        low, high = (x_input - half).clamp_min(-1), (x_input + half).clamp_max(1)
        inside = ((low <= x) & (x <= high)).all(1, keepdim=True).to(x)
        ids = segment_ids(x_input, json.dumps(dict(self.segmenter)))
        shares = torch.stack([_means(*pair) for pair in zip(inside, ids, strict=True)])
        outside = torch.where(x < x_input, torch.minimum(x, low), torch.maximum(x, high))
        moved = torch.where(shares >= 0.5, x.clamp(low, high), outside)
        return torch.where(ids == 0, x, moved)


def _means(values: Tensor, ids: Tensor) -> Tensor:
    """Of every pixel the mean over its segment; both (1, H, W)."""
    sums = values.new_zeros(int(ids.max()) + 1).index_add(0, ids.flatten(), values.flatten())
    return (sums / torch.bincount(ids.flatten()).clamp_min(1))[ids]


def segment_ids(images: Tensor, segmenter: str) -> Tensor:
    """Segments of images (B, 3, H, W), as int64 (B, 1, H, W), 0 where there is none."""
    pictures = to_pictures(images)
    found = [_segment(each.tobytes(), each.shape, segmenter) for each in pictures]
    return torch.from_numpy(np.stack(found)[:, None].astype(np.int64)).to(images.device)


@lru_cache(maxsize=16)
def _segment(pixels: bytes, shape: tuple[int, ...], segmenter: str) -> np.ndarray:
    built = SEGMENTERS.read(json.loads(segmenter)).build(
        Loader(Registry.default(), torch.device("cpu"))
    )
    image = np.frombuffer(pixels, np.uint8).reshape(shape)
    return built.segment(image, np.zeros(shape[:2], np.float32))
