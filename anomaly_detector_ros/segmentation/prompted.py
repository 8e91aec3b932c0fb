"""Segments around the peaks of an anomaly map, by any network of the Segment Anything kind."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.segmentation.masks import rule_by_name
from anomaly_detector_ros.segmentation.prompts import anomaly_peaks
from anomaly_detector_ros.segmentation.superpixels import SuperpixelSegmenter


class PointMasks(NamedTuple):
    """Masks for N points."""

    masks: np.ndarray  # bool (N, H, W)
    quality: np.ndarray  # float32 (N,): the network's estimate of each mask's IoU, about [0, 1]
    stability: np.ndarray  # float32 (N,): see ``stability``


def stability(logits: np.ndarray) -> np.ndarray:
    """IoU of the masks cut at logit 1 and -1: (N, H, W) -> float32 (N,) in [0, 1]."""
    inner = np.count_nonzero(logits > 1.0, axis=(1, 2))
    outer = np.count_nonzero(logits > -1.0, axis=(1, 2))
    return (inner / np.maximum(outer, 1)).astype(np.float32)


class PointPredictor(Protocol):
    """A network that holds an image and cuts out what lies at a point of it."""

    def set_image(self, image: np.ndarray) -> None:
        """Encode an image, uint8 RGB (H, W, 3); later points refer to it."""

    def predict_points(self, points: np.ndarray) -> PointMasks:
        """The best rated mask for each point, (N, 2) x, y in pixels, at the image's size."""


class PromptedSegmenter:
    """Segments around the peaks of an anomaly map, superpixels elsewhere.

    Without the superpixels most of an image stays uncovered, and its raw values are not
    comparable with the averages of the segments (nor are zeros).

    Args:
        predictor: cuts out what lies at the peaks.
        max_prompts: peaks prompted at most; each costs one decoder pass.
        min_distance: between peaks, as a fraction of the image's longer side.
        peak_floor: how far above the map's median a peak must rise, as a fraction of
            (maximum - median).
        min_quality: masks that the network itself rates lower are dropped, [0, 1].
        min_stability: masks that move more with the threshold are dropped, [0, 1].
        min_area_fraction: masks smaller than this share of the image are dropped.
        max_area_fraction: larger ones, too (sky, the whole ground).
        mask_rule: what becomes of overlaps: a name of ``masks.RULES``.
        superpixels: about how many superpixels cover what the masks leave; 0 leaves it uncovered.

    Raises:
        UserError: a setting out of range.
    """

    needs_map = True

    def __init__(
        self,
        predictor: PointPredictor,
        *,
        max_prompts: int = 16,
        min_distance: float = 0.03,
        peak_floor: float = 0.2,
        min_quality: float = 0.7,
        min_stability: float = 0.8,
        min_area_fraction: float = 0.001,
        max_area_fraction: float = 0.25,
        mask_rule: str = "smaller_wins",
        superpixels: int = 400,
    ) -> None:
        if max_prompts < 1 or not 0 < min_distance < 1:
            raise UserError(
                f"segmenter: max_prompts {max_prompts}, min_distance {min_distance}: "
                "take max_prompts >= 1 and min_distance between 0 and 1"
            )
        self.predictor = predictor
        self.max_prompts = max_prompts
        self.min_distance = min_distance
        self.peak_floor = peak_floor
        self.min_quality = min_quality
        self.min_stability = min_stability
        self.area_range = (min_area_fraction, max_area_fraction)
        self.superpixels = SuperpixelSegmenter(superpixels) if superpixels else None
        self._disjoint = rule_by_name(mask_rule)

    def segment(self, image: np.ndarray, anomaly_map: np.ndarray) -> np.ndarray:
        """uint8 RGB (H, W, 3) and float (H, W) -> int32 (H, W): ids 1..N, 0 = none."""
        segments = self._around_peaks(image, anomaly_map)
        if self.superpixels is None:
            return segments
        rest = self.superpixels.segment(image) + segments.max()
        return np.where(segments > 0, segments, rest)

    def _around_peaks(self, image: np.ndarray, anomaly_map: np.ndarray) -> np.ndarray:
        points = anomaly_peaks(
            anomaly_map,
            max_prompts=self.max_prompts,
            min_distance=self.min_distance,
            floor=self.peak_floor,
        )
        size = image.shape[:2]
        if len(points) == 0:  # the encoder's pass is the costly one
            return np.zeros(size, np.int32)
        self.predictor.set_image(image)
        found = self.predictor.predict_points(points)
        good = (found.quality >= self.min_quality) & (found.stability >= self.min_stability)
        return self._disjoint(found.masks[good], size, self.area_range)
