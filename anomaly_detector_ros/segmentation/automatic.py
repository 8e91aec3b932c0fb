"""Segments of the whole image from a grid of prompts, as Segment Anything's generator makes them.

``segment_anything.SamAutomaticMaskGenerator`` prompts a network at every point of a regular grid,
drops masks that the network rates low or that move with the threshold, then those whose boxes
repeat a better mask's (IoU above 0.7), and removes islands and holes from the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.segmentation.masks import rule_by_name

if TYPE_CHECKING:
    from segment_anything import SamAutomaticMaskGenerator


class AutomaticSegmenter:
    """The masks of a generator as disjoint segments; what no mask covers stays uncovered.

    Args:
        generator: finds the masks; see ``make_generator``.
        mask_rule: what becomes of overlaps: a name of ``masks.RULES``. The default is the
            paper's, under which small masks inside larger ones vanish.
        min_area_fraction: segments below this share of the image are dropped, [0, 1].

    Raises:
        UserError: a setting out of range.
    """

    needs_map = False

    def __init__(
        self,
        generator: SamAutomaticMaskGenerator,
        *,
        mask_rule: str = "larger_first",
        min_area_fraction: float = 0.001,
    ) -> None:
        if not 0 <= min_area_fraction <= 1:
            raise UserError(f"segmenter: min_area_fraction {min_area_fraction}: take 0 to 1")
        self.generator = generator
        self.area_range = (min_area_fraction, 1.0)
        self._disjoint = rule_by_name(mask_rule)

    def masks(self, image: np.ndarray) -> list[np.ndarray]:
        """The overlapping masks of an image, uint8 RGB (H, W, 3), as bool (H, W) each."""
        return [record["segmentation"] for record in self.generator.generate(image)]

    def segment(self, image: np.ndarray, anomaly_map: np.ndarray | None = None) -> np.ndarray:
        """uint8 RGB (H, W, 3) -> int32 (H, W): ids 1..N, 0 = none. The map is not used."""
        return self._disjoint(self.masks(image), image.shape[:2], self.area_range)


def make_generator(
    model: Any,
    *,
    points_per_batch: int,
    points_per_side: int = 32,
    pred_iou_thresh: float = 0.88,
    stability_score_thresh: float = 0.95,
    min_mask_region_area: int = 200,
) -> SamAutomaticMaskGenerator:
    """Segment Anything's mask generator; its own defaults but for the paper's region area.

    Args:
        model: a ``segment_anything.modeling.Sam``.
        points_per_batch: prompts decoded at once, which costs memory and changes no result.
        points_per_side: the grid has the square of it.
        pred_iou_thresh: masks that the network itself rates no higher are dropped, [0, 1].
        stability_score_thresh: so are masks whose IoU between the cuts at logit 1 and -1 is lower.
        min_mask_region_area: islands and holes of fewer pixels are removed; 0 leaves them.

    Raises:
        UserError: a setting out of range.
    """
    from segment_anything import SamAutomaticMaskGenerator

    if points_per_side < 1 or min_mask_region_area < 0:
        raise UserError(
            f"segmenter: points_per_side {points_per_side}, min_mask_region_area "
            f"{min_mask_region_area}: take points_per_side >= 1 and min_mask_region_area >= 0"
        )
    for name, value in (
        ("pred_iou_thresh", pred_iou_thresh),
        ("stability_score_thresh", stability_score_thresh),
    ):
        if not 0 <= value <= 1:
            raise UserError(f"segmenter: {name} {value}: take 0 to 1")
    return SamAutomaticMaskGenerator(
        model,
        points_per_side=points_per_side,
        points_per_batch=points_per_batch,
        pred_iou_thresh=pred_iou_thresh,
        stability_score_thresh=stability_score_thresh,
        min_mask_region_area=min_mask_region_area,
    )
