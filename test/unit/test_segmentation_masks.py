from __future__ import annotations

import numpy as np
import pytest

from anomaly_detector_ros.segmentation.masks import (
    RULES,
    MaskRule,
    larger_first,
    smaller_wins,
)

SIZE = (20, 30)


def _rectangle(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def _expected(*layers: tuple[np.ndarray, int]) -> np.ndarray:
    """Ids painted one over the other."""
    ids = np.zeros(SIZE, np.int32)
    for mask, number in layers:
        ids[mask] = number
    return ids


every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))


def test_rules_on_crossing_masks_keep_the_order_of_the_masks() -> None:
    # Given smallest first, largest second: ids follow the input, not the area.
    small, large, middle = (
        _rectangle(8, 12, 8, 12),
        _rectangle(0, 10, 0, 20),
        _rectangle(5, 15, 10, 25),
    )
    masks = [small, large, middle]
    np.testing.assert_array_equal(
        smaller_wins(masks, SIZE), _expected((large, 2), (middle, 3), (small, 1))
    )
    np.testing.assert_array_equal(
        larger_first(masks, SIZE), _expected((small, 1), (middle, 3), (large, 2))
    )


def test_nested_masks_side_by_side() -> None:
    """A door in a house on a field, and a stone that nothing overlaps."""
    field, house = _rectangle(10, 20, 0, 30), _rectangle(11, 19, 2, 18)
    door, stone = _rectangle(14, 19, 8, 11), _rectangle(2, 5, 25, 28)
    masks = [door, stone, house, field]
    by_rule = {name: rule(masks, SIZE, (0.001, 1.0)) for name, rule in RULES.items()}
    np.testing.assert_array_equal(
        by_rule["smaller_wins"], _expected((field, 4), (house, 3), (door, 1), (stone, 2))
    )
    np.testing.assert_array_equal(by_rule["larger_first"], _expected((stone, 1), (field, 2)))
    assert by_rule["larger_first"].dtype == by_rule["smaller_wins"].dtype == np.int32


def test_equal_areas_go_by_order() -> None:
    left, right = _rectangle(0, 4, 0, 6), _rectangle(0, 4, 3, 9)
    np.testing.assert_array_equal(
        smaller_wins([left, right], SIZE), _expected((left, 1), (right, 2))
    )
    np.testing.assert_array_equal(
        larger_first([left, right], SIZE), _expected((right, 2), (left, 1))
    )


@every_rule
def test_masks_outside_the_area_range_are_dropped(rule: MaskRule) -> None:
    masks = [_rectangle(0, 2, 0, 2), _rectangle(5, 10, 0, 20), _rectangle(0, 20, 0, 30)]
    np.testing.assert_array_equal(rule(masks, SIZE, (0.01, 0.5)), masks[1].astype(np.int32))


def test_what_smaller_masks_leave_must_be_large_enough() -> None:
    # All but one row of the second mask lies under the first, which is smaller by that row.
    masks = [_rectangle(0, 9, 0, 20), _rectangle(0, 10, 0, 20)]
    np.testing.assert_array_equal(smaller_wins(masks, SIZE, (0.05, 1.0)), masks[0].astype(np.int32))


def test_what_larger_masks_leave_must_be_large_enough() -> None:
    # The second mask keeps 6 pixels beside the first; these stay taken even though they are too
    # few for a segment, so the third keeps only what neither held.
    masks = [_rectangle(0, 10, 0, 20), _rectangle(4, 10, 10, 21), _rectangle(3, 10, 19, 25)]
    third = _rectangle(3, 10, 20, 25) & ~masks[1]
    np.testing.assert_array_equal(
        larger_first(masks, SIZE, (7 / 600, 1.0)), _expected((masks[0], 1), (third, 2))
    )
    np.testing.assert_array_equal(
        larger_first(masks, SIZE, (6 / 600, 1.0)),
        _expected((masks[1], 2), (masks[0], 1), (third, 3)),
    )


@every_rule
def test_no_masks_no_segments(rule: MaskRule) -> None:
    segments = rule([], SIZE, (0.0, 1.0))
    assert segments.shape == SIZE
    assert not segments.any()
    # An empty mask is none either.
    assert not rule([np.zeros(SIZE, bool)], SIZE, (0.0, 1.0)).any()


@every_rule
def test_an_array_of_masks_does_as_well_as_a_list(rule: MaskRule) -> None:
    masks = [_rectangle(0, 10, 0, 20), _rectangle(5, 15, 10, 25)]
    np.testing.assert_array_equal(
        rule(np.stack(masks), SIZE, (0.0, 1.0)), rule(masks, SIZE, (0.0, 1.0))
    )
