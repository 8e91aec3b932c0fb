"""Segments by a network of the Segment Anything kind: of the whole image, or around score peaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

import cv2
import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt
from skimage.feature import peak_local_max

from anomaly_detector_ros.segmentation.base import SegmenterSettings
from anomaly_detector_ros.segmentation.masks import RULES, MaskRule
from anomaly_detector_ros.segmentation.superpixels import Superpixels

if TYPE_CHECKING:
    from segment_anything import SamAutomaticMaskGenerator

Share = Annotated[float, Ge(0), Le(1)]

# Peaks are searched at this longest side (pixels): feature maps are far coarser anyway.
_SEARCH_SIDE = 256


@dataclass(frozen=True, kw_only=True)
class AnythingSettings(SegmenterSettings):
    """What networks of this kind have in common.

    Attributes:
        mode: prompt the network at every point of a grid ("automatic"), or at the peaks of the
            anomaly map ("prompted").
        mask_rule: what becomes of overlaps: a name of ``masks.RULES``. By default "larger_first"
            of automatic masks, the paper's, under which small masks inside larger ones vanish,
            and "smaller_wins" of prompted ones.
        min_area_fraction: masks smaller than this share of the image are dropped.
        max_prompts: prompted: peaks at most; each costs one decoder pass.
        min_distance: prompted: between peaks, as a fraction of the image's longer side.
        peak_floor: prompted: how far above the map's median a peak must rise, as a fraction of
            (maximum - median).
        min_quality: prompted: masks that the network itself rates lower are dropped, [0, 1].
        min_stability: prompted: masks that move more with the threshold are dropped, [0, 1].
        max_area_fraction: prompted: larger masks are dropped (sky, the whole ground).
        superpixels: prompted: about how many superpixels cover what the masks leave; 0 leaves it
            uncovered.
        points_per_side: automatic: the grid has the square of it.
        pred_iou_thresh: automatic: masks that the network itself rates no higher are dropped.
        stability_score_thresh: automatic: so are masks whose IoU between the cuts at logit 1 and
            -1 is lower.
        min_mask_region_area: automatic: islands and holes of fewer pixels are removed, 0 leaves
            them; the paper's default.
    """

    mode: Literal["automatic", "prompted"]
    mask_rule: Literal["larger_first", "smaller_wins"] | None = None
    min_area_fraction: Share = 0.001
    max_prompts: Annotated[int, Ge(1)] = 16
    min_distance: Annotated[float, Gt(0), Lt(1)] = 0.03
    peak_floor: float = 0.2
    min_quality: float = 0.7
    min_stability: float = 0.8
    max_area_fraction: Share = 0.25
    superpixels: Annotated[int, Ge(0)] = 400
    points_per_side: Annotated[int, Ge(1)] = 32
    pred_iou_thresh: Share = 0.88
    stability_score_thresh: Share = 0.95
    min_mask_region_area: Annotated[int, Ge(0)] = 200

    _OF_AUTOMATIC: ClassVar[frozenset[str]] = frozenset(
        {"points_per_side", "pred_iou_thresh", "stability_score_thresh", "min_mask_region_area"}
    )
    _OF_PROMPTED: ClassVar[frozenset[str]] = frozenset(
        {"max_prompts", "min_distance", "peak_floor", "min_quality", "min_stability"}
        | {"max_area_fraction", "superpixels"}
    )

    def __post_init__(self) -> None:
        """Refuses settings of the other mode, which would do nothing."""
        foreign = self._OF_PROMPTED if self.mode == "automatic" else self._OF_AUTOMATIC
        for field in fields(self):
            if field.name in foreign and getattr(self, field.name) != field.default:
                raise ValueError(f"mode {self.mode} has no setting {field.name}: leave it out")

    @property
    def rule(self) -> MaskRule:
        """What makes the masks disjoint."""
        default = "larger_first" if self.mode == "automatic" else "smaller_wins"
        return RULES[self.mask_rule or default]

    def with_fewer_prompts(self) -> Mapping[str, int]:
        """See `SegmenterSettings`."""
        if self.mode == "automatic":
            return {"points_per_side": max(1, self.points_per_side // 2)}  # the grid: its square
        return {"max_prompts": max(1, self.max_prompts // 4)}


class AutomaticSegmenter:
    """The masks of a generator as disjoint segments; what no mask covers stays uncovered.

    Args:
        generator: finds the masks; see ``make_generator``.
        settings: what becomes of them.
    """

    needs_map = False

    def __init__(self, generator: SamAutomaticMaskGenerator, settings: AnythingSettings) -> None:
        self.generator, self.settings = generator, settings

    def masks(self, image: np.ndarray) -> list[np.ndarray]:
        """The overlapping masks of an image, uint8 RGB (H, W, 3), as bool (H, W) each."""
        return [record["segmentation"] for record in self.generator.generate(image)]

    def segment(self, image: np.ndarray, anomaly_map: np.ndarray | None = None) -> np.ndarray:
        """uint8 RGB (H, W, 3) -> int32 (H, W): ids 1..N, 0 = none. The map is not used."""
        areas = (self.settings.min_area_fraction, 1.0)
        return self.settings.rule(self.masks(image), image.shape[:2], areas)


def make_generator(
    model: Any, settings: AnythingSettings, *, points_per_batch: int
) -> SamAutomaticMaskGenerator:
    """Segment Anything's own mask generator.

    It prompts a network at every point of a grid, drops masks that the network rates low or that
    move with the threshold, then those whose boxes repeat a better mask's (IoU above 0.7), and
    removes islands and holes from the rest.

    Args:
        model: a ``segment_anything.modeling.Sam``.
        points_per_batch: prompts decoded at once, which costs memory and changes no result.
    """
    from segment_anything import SamAutomaticMaskGenerator

    return SamAutomaticMaskGenerator(
        model,
        points_per_side=settings.points_per_side,
        points_per_batch=points_per_batch,
        pred_iou_thresh=settings.pred_iou_thresh,
        stability_score_thresh=settings.stability_score_thresh,
        min_mask_region_area=settings.min_mask_region_area,
    )


def prompts_at_once(device: torch.device) -> int:
    """Prompts to decode at once, each into three masks of logits.

    The official number keeps a GPU busy; a CPU is no faster with many, and they take its memory.
    """
    return 4 if device.type == "cpu" else 64


class PointMasks(NamedTuple):
    """Masks for N points."""

    masks: np.ndarray  # bool (N, H, W)
    quality: np.ndarray  # float32 (N,): the network's estimate of each mask's IoU, about [0, 1]
    stability: np.ndarray  # float32 (N,): see ``stability``


def stability(logits: np.ndarray) -> np.ndarray:
    """IoU of the masks cut at logit 1 and -1: (N, H, W) -> float32 (N,) in [0, 1]."""
    inner = np.count_nonzero(logits > 1.0, axis=(1, 2))
    outer = np.count_nonzero(logits > -1.0, axis=(1, 2))
    return np.asarray(inner / np.maximum(outer, 1), np.float32)


class PointPredictor(Protocol):
    """A network that holds an image and cuts out what lies at a point of it."""

    def set_image(self, image: np.ndarray) -> None:
        """Encode an image, uint8 RGB (H, W, 3); later points refer to it."""
        ...

    def predict_points(self, points: np.ndarray) -> PointMasks:
        """The best rated mask for each point, (N, 2) x, y in pixels, at the image's size."""
        ...


class PromptedSegmenter:
    """Segments around the peaks of an anomaly map, superpixels elsewhere.

    Without the superpixels most of an image stays uncovered, and its raw values are not
    comparable with the averages of the segments (nor are zeros).

    Args:
        predictor: cuts out what lies at the peaks.
        settings: which peaks are prompted, and which masks are kept.
    """

    needs_map = True

    def __init__(self, predictor: PointPredictor, settings: AnythingSettings) -> None:
        self.predictor, self.settings = predictor, settings
        count = settings.superpixels
        self._superpixels = Superpixels(count=count).build() if count else None

    def segment(self, image: np.ndarray, anomaly_map: np.ndarray) -> np.ndarray:
        """uint8 RGB (H, W, 3) and float (H, W) -> int32 (H, W): ids 1..N, 0 = none."""
        segments = self._around_peaks(image, anomaly_map)
        if self._superpixels is None:
            return segments
        rest = self._superpixels.segment(image) + segments.max()
        return np.where(segments > 0, segments, rest)

    def _around_peaks(self, image: np.ndarray, anomaly_map: np.ndarray) -> np.ndarray:
        points = anomaly_peaks(
            anomaly_map,
            max_prompts=self.settings.max_prompts,
            min_distance=self.settings.min_distance,
            floor=self.settings.peak_floor,
        )
        size = image.shape[:2]
        if len(points) == 0:  # the encoder's pass is the costly one
            return np.zeros(size, np.int32)
        self.predictor.set_image(image)
        found = self.predictor.predict_points(points)
        good = found.quality >= self.settings.min_quality
        good &= found.stability >= self.settings.min_stability
        areas = (self.settings.min_area_fraction, self.settings.max_area_fraction)
        return self.settings.rule(list(found.masks[good]), size, areas)


def anomaly_peaks(
    anomaly_map: np.ndarray,
    *,
    max_prompts: int = 16,
    min_distance: float = 0.03,
    floor: float = 0.2,
) -> np.ndarray:
    """Positions of the highest local maxima of an anomaly map, highest first.

    Args:
        anomaly_map: float (H, W).
        max_prompts: no more than this many.
        min_distance: between two peaks, as a fraction of the longer side.
        floor: peaks must rise above the map's median by this fraction of (maximum - median), so
            that ripples of the background are not prompted. A map without any rise has no peaks.

    Returns:
        float32 (N, 2): x, y in pixels of the map.
    """
    height, width = anomaly_map.shape
    scale = min(1.0, _SEARCH_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small: np.ndarray = anomaly_map.astype(np.float32, copy=False)
    if scale < 1.0:
        small = cv2.resize(small, size, interpolation=cv2.INTER_AREA)
    median, top = float(np.median(small)), float(small.max())
    if not top > median:
        return np.zeros((0, 2), np.float32)
    peaks = peak_local_max(
        small,
        min_distance=max(1, round(min_distance * max(size))),
        threshold_abs=median + floor * (top - median),
        exclude_border=False,
        num_peaks=max_prompts,
    )
    # Pixel centres of the small map, in pixels of the full one.
    ratio = np.array([width / size[0], height / size[1]], np.float32)
    return np.asarray((peaks[:, ::-1] + 0.5) * ratio - 0.5, np.float32)
