"""A detector's metrics on labelled images, beside what they must be read against."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch.nn.functional as F
from torch import Tensor

from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.evaluation.components import ComponentCounts
from anomaly_detector_ros.evaluation.datasets import LabelledImage
from anomaly_detector_ros.evaluation.pixels import PixelCounts, PixelResult
from anomaly_detector_ros.tensors import to_tensor

INPAINT_RADIUS = 5


@dataclass
class Scores:
    """Anomaly maps of one method over a data set, with the truth they are held against.

    Component metrics need the threshold that the pixels choose, so the maps are kept, in half
    precision.
    """

    name: str
    maps: list[np.ndarray] = field(default_factory=list)
    pixels: PixelCounts = field(default_factory=PixelCounts)

    def add(self, anomaly_map: np.ndarray, truth: LabelledImage) -> None:
        """Adds the map of one image, float (H, W) in [0, 2]."""
        stored = anomaly_map.astype(np.float16)
        self.maps.append(stored)
        self.pixels.add(stored, truth.anomaly, truth.valid)

    def row(self, truths: list[tuple[np.ndarray, np.ndarray]]) -> Row:
        """The metrics; component F1* at the threshold with the best pixel F1.

        Args:
            truths: (anomaly, valid) of each image added, bool (H, W).
        """
        pixels = self.pixels.result()
        components = ComponentCounts()
        for anomaly_map, (anomaly, valid) in zip(self.maps, truths, strict=True):
            components.add(anomaly_map >= pixels.best_threshold, anomaly, valid)
        return Row(self.name, pixels, components.f1_star())


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    pixels: PixelResult
    f1_star: float


def evaluate(
    detector: Detector,
    images: Iterable[LabelledImage],
    *,
    progress: Callable[[int], None] | None = None,
) -> list[Row]:
    """Metrics of a detector and of three references on the same images and edits.

    The rows: the detector; the difference of the same edits in colour; random scores; the
    detector's analysis of a perfect edit, in which the labelled anomalies are inpainted (Telea
    2004) and nothing else changes: the ceiling for any better edit.

    Args:
        progress: called with the number of images done.
    """
    names = ("detector", "colour difference of the same edits", "random", "perfect edit")
    methods = [Scores(name) for name in names]
    truths = []
    rng = np.random.default_rng(0)
    for done, truth in enumerate(images, 1):
        inputs, edits = detector.synthesize([truth.image])
        maps = (
            detector.analyse(truth.image, inputs, edits[0]).heatmap,
            _colour_difference(inputs, edits[0], truth.image.shape[:2]),
            rng.random(truth.anomaly.shape, np.float32),
            _perfect(detector, truth),
        )
        for method, anomaly_map in zip(methods, maps, strict=True):
            method.add(anomaly_map, truth)
        truths.append((truth.anomaly, truth.valid))
        if progress:
            progress(done)
    return [method.row(truths) for method in methods]


def _colour_difference(original: Tensor, edits: Tensor, size: tuple[int, ...]) -> np.ndarray:
    """Mean absolute difference over channels and edits at the image's size, (H, W) in [0, 1]."""
    difference = (edits - original).abs().mean((0, 1))[None, None] / 2
    large = F.interpolate(difference, size=size, mode="bilinear", align_corners=False)
    return large[0, 0].cpu().numpy()


def _perfect(detector: Detector, truth: LabelledImage) -> np.ndarray:
    mask = truth.anomaly.astype(np.uint8)
    inpainted = cv2.inpaint(truth.image, mask, INPAINT_RADIUS, cv2.INPAINT_TELEA)
    pair = to_tensor(np.stack([truth.image, inpainted])).to(detector.device)
    return detector.analyse(truth.image, pair[:1], pair[1:]).heatmap
