"""Nominal feature vectors drawn from images, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.features.networks import FeatureExtractor
from anomaly_detector_ros.imaging.images import read_rgb
from anomaly_detector_ros.imaging.light import vary_light
from anomaly_detector_ros.runtime.tensors import to_tensor


def sample_features(
    extractor: FeatureExtractor,
    images: Iterable[np.ndarray | Path],
    count: int = 50_000,
    seed: int = 0,
    lights: int = 0,
    progress: Callable[[int], None] | None = None,
    tried: Callable[[int, Callable[[], Tensor]], Tensor | None] = lambda _, work: work(),
) -> Tensor:
    """Feature vectors drawn from images without replacement, each position equally likely.

    Reservoir sampling by random keys: the vectors of the ``count`` smallest keys stay. Each image
    is read once; memory holds ``count`` vectors and those of one image.

    Args:
        extractor: turns images into feature maps, whose size may differ from image to image.
        images: uint8 RGB (H, W, 3), or picture files.
        count: how many vectors to draw.
        seed: of the drawing, and of the lights.
        lights: in how many other lights each image is seen besides its own; see `vary_light`.
        progress: called with the number of images done.
        tried: does the work on an image, given by its number; None leaves the image out.

    Returns:
        (N, C) float32 on the CPU; N is ``count``, or all vectors where there are fewer.

    Raises:
        UserError: no images, or a file that cannot be read.
    """
    if count < 1:
        raise UserError(f"count {count}: draw at least one feature vector")
    generator, light = (torch.Generator().manual_seed(seed) for _ in range(2))
    bank = torch.empty(count, extractor.channels)
    # Free places have the largest key of all.
    keys = torch.full((count,), 2.0, dtype=torch.float64)
    done = 0
    for number, image in enumerate(images):
        vectors = tried(number, partial(_vectors, extractor, image, lights, light))
        if vectors is None:
            continue
        new = torch.rand(len(vectors), dtype=torch.float64, generator=generator)
        both = torch.cat([keys, new])
        stays = torch.zeros(len(both), dtype=torch.bool)
        stays[both.topk(count, largest=False).indices] = True
        entering = stays[count:].nonzero()[:, 0]
        places = (~stays[:count]).nonzero()[:, 0]
        keys[places] = new[entering]
        bank[places] = vectors[entering.to(vectors.device)].float().cpu()
        done += 1
        if progress:
            progress(done)
    if not done:
        raise UserError("no images to draw features from: give at least one")
    return bank[keys < 2.0]


@torch.no_grad()
def _vectors(
    extractor: FeatureExtractor, image: np.ndarray | Path, lights: int, light: torch.Generator
) -> Tensor:
    given = to_tensor((read_rgb(image) if isinstance(image, Path) else image)[None])
    seen = torch.cat([given, *(vary_light(given, light) for _ in range(lights))])
    return extractor.extract(seen).flatten(2).transpose(1, 2).flatten(0, 1)
