"""Segmenters by name, and the average of scores over their segments."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.runtime.parts import PartRegistry
from anomaly_detector_ros.weights.loading import Loader, Weighted

Uncovered = Literal["raw", "zero", "mean"]


class Segmenter(Protocol):
    """Cuts an image into disjoint segments.

    Attributes:
        needs_map: whether the segments depend on the anomaly map, or on the image alone.
    """

    needs_map: bool

    def segment(self, image: np.ndarray, anomaly_map: np.ndarray) -> np.ndarray:
        """uint8 RGB (H, W, 3) and float32 (H, W) -> int32 (H, W): ids from 1, 0 = none."""
        ...


@dataclass(frozen=True, kw_only=True)
class SegmenterSettings(Weighted, ABC):
    """The settings of one segmenter; a subclass registers itself in `SEGMENTERS`.

    Attributes:
        uncovered: pixels without a segment keep their own score ("raw"), take 0 ("zero", as in the
            code published with the paper) or their mean, as one more segment ("mean", as in the
            authors' experiments).
    """

    uncovered: Uncovered = "zero"

    @abstractmethod
    def build(self, loader: Loader) -> Segmenter | None:
        """The segmenter; None where scores stay as they are.

        Raises:
            UserError: weights that are missing or unusable.
        """

    def with_fewer_prompts(self) -> Mapping[str, int]:
        """Settings that prompt a network a quarter as often; none where nothing is prompted."""
        return {}


SEGMENTERS: PartRegistry[SegmenterSettings] = PartRegistry(
    "segmenter", "anomaly_detector_ros.segmentation"
)


@SEGMENTERS.register("none")
@dataclass(frozen=True, kw_only=True)
class NoSegments(SegmenterSettings):
    """Scores stay those of single pixels."""

    def build(self, loader: Loader) -> None:
        """See `SegmenterSettings`."""


def segment_average(
    anomaly_map: np.ndarray, segments: np.ndarray, uncovered: Uncovered
) -> np.ndarray:
    """Give each segment's pixels the mean of the anomaly map over the segment.

    Args:
        anomaly_map: float (H, W).
        segments: int (H, W), ids from 1, 0 where there is none.
        uncovered: see `SegmenterSettings`.

    Returns:
        float32 (H, W).
    """
    if anomaly_map.shape != segments.shape:
        raise UserError(
            f"segments of shape {segments.shape}: the anomaly map has {anomaly_map.shape}"
        )
    ids = segments.ravel()
    values = anomaly_map.ravel()
    counts = np.bincount(ids)
    means = np.bincount(ids, weights=values) / np.maximum(counts, 1)
    averaged: np.ndarray = means.astype(np.float32)[ids]
    none = ids == 0
    if uncovered != "mean":  # which the bin of id 0 holds already
        averaged[none] = values[none] if uncovered == "raw" else 0.0
    return averaged.reshape(anomaly_map.shape)
