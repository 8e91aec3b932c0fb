"""Methods to evaluate: a labelled image in, an anomaly map out, higher is more anomalous."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
from torch import Tensor

from anomaly_detector_ros.baselines.base import FittedBaseline
from anomaly_detector_ros.baselines.scorer import BaselineScorer
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.distances.pixel import rgb_distance, ssim_distance
from anomaly_detector_ros.evaluation.cache import array_digest
from anomaly_detector_ros.evaluation.cached import CachedParts
from anomaly_detector_ros.evaluation.datasets.base import LabelledImage
from anomaly_detector_ros.features.upsampling import upsample_bilinear
from anomaly_detector_ros.runtime.tensors import to_tensor

INPAINT_RADIUS = 5


class Method(Protocol):
    """One row of a table.

    Attributes:
        name: its name on the command line and in the results.
        key: tells its maps from those of other methods and settings; anything JSON can write.
    """

    name: str
    key: Any

    def anomaly_map(self, truth: LabelledImage) -> np.ndarray:
        """float32 (H, W), any range; only the methods that say so look at the labels."""
        ...


@dataclass(frozen=True)
class Edited:
    """Base of the methods that start from a detector's edit of the image."""

    name: str
    detector: Detector
    parts: CachedParts

    @property
    def key(self) -> Any:
        """See `Method`."""
        return [type(self).__name__, self.parts.profile_key(self.detector.profile)]

    def distance(self, image: np.ndarray, original: Tensor, edits: Tensor) -> np.ndarray:
        """The raw anomaly map (H, W) of edits (K, 3, h, w) of ``original`` (1, 3, h, w)."""
        raise NotImplementedError

    def raw_map(self, truth: LabelledImage) -> np.ndarray:
        """The anomaly map before it is averaged over segments, float32 (H, W)."""
        original, edits = self.parts.edits(self.detector, truth.image)
        return self.distance(truth.image, original, edits)

    def anomaly_map(self, truth: LabelledImage) -> np.ndarray:
        """See `Method`."""
        return refined(self.detector, truth.image, self.raw_map(truth))


class Synthesis(Edited):
    """The detector itself: distance of features of input and edit."""

    def distance(self, image: np.ndarray, original: Tensor, edits: Tensor) -> np.ndarray:
        """See `Edited`."""
        return self.detector.compare(image, original, edits)


class PixelDifference(Edited):
    """Distance of the pictures themselves: no network looks at input and edit."""

    measure: Callable[[Tensor, Tensor], Tensor]

    def distance(self, image: np.ndarray, original: Tensor, edits: Tensor) -> np.ndarray:
        """See `Edited`."""
        distance = self.measure(original, edits).mean(0, keepdim=True)
        return upsample_bilinear(distance, image.shape[:2])[0].cpu().numpy()


class StructuralDifference(PixelDifference):
    """(1 - SSIM) / 2 of input and edit (Wang et al. 2004)."""

    measure = staticmethod(ssim_distance)


class ColourDifference(PixelDifference):
    """Root mean square difference of the colours of input and edit."""

    measure = staticmethod(rgb_distance)


class PerfectEdit(Edited):
    """The detector's analysis of an edit in which the labelled anomalies are inpainted.

    Telea's method (2004), at full resolution, and nothing else changes: the ceiling for any better
    edit.
    """

    def raw_map(self, truth: LabelledImage) -> np.ndarray:
        """See `Edited`; looks at the labels."""
        mask = truth.anomaly.astype(np.uint8)
        inpainted = cv2.inpaint(truth.image, mask, INPAINT_RADIUS, cv2.INPAINT_TELEA)
        pair = to_tensor(np.stack([truth.image, inpainted])).to(self.detector.device)
        return self.detector.compare(truth.image, pair[:1], pair[1:])


@dataclass(frozen=True)
class Fitted:
    """A baseline on the features of the image, averaged over the detector's segments."""

    name: str
    baseline: FittedBaseline
    detector: Detector
    key: Any

    def anomaly_map(self, truth: LabelledImage) -> np.ndarray:
        """See `Method`."""
        raw = BaselineScorer(self.detector.features, self.baseline).score(truth.image)
        return refined(self.detector, truth.image, raw)


@dataclass(frozen=True)
class RandomScores:
    """Uniform noise, the same for the same image: what chance reaches."""

    name: str = "random"
    key: Any = "random"

    def anomaly_map(self, truth: LabelledImage) -> np.ndarray:
        """See `Method`."""
        seed = int(array_digest(truth.image)[:8], 16)
        return np.random.default_rng(seed).random(truth.image.shape[:2], np.float32)


def refined(detector: Detector, image: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """A raw map averaged over the detector's segments of the image."""
    return detector.refine(raw, detector.segment(image, raw))
