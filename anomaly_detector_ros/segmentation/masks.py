"""Rules that make overlapping masks disjoint segments.

A rule takes masks, bool (H, W) each and in any order, the image's (H, W), and the range of shares
of the image that segments may have, as (lowest, highest) in [0, 1]. It returns int32 (H, W): ids
1..N in the order of the masks that they stem from, 0 where there is none. A mask below the lowest
share, as it comes or by what the others leave of it, becomes no segment; nor does one above the
highest, which then takes no pixels from others either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

AreaRange = tuple[float, float]
MaskRule = Callable[[Sequence[np.ndarray], tuple[int, int], AreaRange], np.ndarray]

_ANY_AREA: AreaRange = (0.0, 1.0)


def smaller_wins(
    masks: Sequence[np.ndarray], size: tuple[int, int], area_range: AreaRange = _ANY_AREA
) -> np.ndarray:
    """Where masks overlap, the smaller one keeps the pixels.

    A person before a building keeps their own segment, whereas a larger mask on top would average
    their score away with everything behind them.
    """
    return _paint(masks, size, area_range, over=True)


def larger_first(
    masks: Sequence[np.ndarray], size: tuple[int, int], area_range: AreaRange = _ANY_AREA
) -> np.ndarray:
    """Where masks overlap, the larger one keeps the pixels, as in the paper's code.

    A small mask inside a larger one vanishes. For the paper's segments, ``area_range`` is
    (0.001, 1).
    """
    return _paint(masks, size, area_range, over=False)


RULES: dict[str, MaskRule] = {"larger_first": larger_first, "smaller_wins": smaller_wins}


def _paint(
    masks: Sequence[np.ndarray], size: tuple[int, int], area_range: AreaRange, over: bool
) -> np.ndarray:
    """Masks in falling order of area, each ``over`` the ones before it or only beside them."""
    ids = np.zeros(size, np.int32)
    low, high = (fraction * ids.size for fraction in area_range)
    areas = np.array([np.count_nonzero(mask) for mask in masks], np.int64)
    for index in np.argsort(-areas, kind="stable"):
        if low <= areas[index] <= high:
            mask = masks[index]
            ids[mask if over else mask & (ids == 0)] = index + 1
    return _renumber(ids, low)


def _renumber(ids: np.ndarray, min_area: float) -> np.ndarray:
    """Ids 1..n without gaps, in the order of the old ones; smaller segments become 0."""
    counts = np.bincount(ids.ravel())
    keep = counts >= max(min_area, 1)
    keep[0] = False
    new: np.ndarray = np.cumsum(keep, dtype=np.int32) * keep.astype(np.int32)
    renumbered: np.ndarray = new[ids]
    return renumbered
