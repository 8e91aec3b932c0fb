from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as PilImage

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.evaluation.table.gallery import (
    ANOMALY,
    FALSE_ALARM,
    HIT,
    MISS,
    TITLES,
    VOID,
    Panels,
    draw,
    feature_colours,
    gallery,
    truths,
    verdicts,
)

H, W = 60, 100


@pytest.fixture
def row():
    """A frame with an anomalous square of which the mask hits the left half; void at the bottom."""
    rng = np.random.default_rng(0)
    anomaly = np.zeros((H, W), bool)
    anomaly[20:40, 40:60] = True
    mask = np.zeros((H, W), bool)
    mask[20:40, 30:50] = True
    valid = np.ones((H, W), bool)
    valid[-10:] = False
    features = rng.normal(size=(8, 6, 10)).astype(np.float32)
    return Panels(
        name="frame 7",
        image=np.full((H, W, 3), 120, np.uint8),
        edited=np.full((16, 24, 3), 60, np.uint8),
        features_input=features,
        features_edit=features + 0.1,
        raw=np.full((H, W), 0.25, np.float32),
        refined=np.full((H, W), 0.5, np.float32),
        mask=mask,
        anomaly=anomaly,
        valid=valid,
    )


def test_sheet_holds_every_panel_of_every_row(row, tmp_path):
    tall = Panels(**{**vars(row), "image": np.full((200, 100, 3), 10, np.uint8), **_tall_truth()})
    axes = np.reshape(draw([row, tall], (0, 0.5), 100).axes[: 2 * len(TITLES)], (2, -1))
    shown = [[panel.images[0] for panel in line] for line in axes]
    assert [panel.get_title() for panel in axes[0]] == list(TITLES)
    assert [line[0].get_xlabel() for line in axes] == ["frame 7"] * 2
    assert np.array_equal(shown[0][0].get_array(), row.image)
    assert np.array_equal(shown[0][1].get_array(), row.edited)
    assert np.array_equal(shown[0][4].get_array(), row.raw)
    assert np.array_equal(shown[0][5].get_array(), row.refined)
    painted = [axes[0][column].images[1].get_array() for column in (6, 7)]
    assert painted[0][30, 55] == MISS
    assert painted[1][30, 50] == ANOMALY
    assert painted[0].mask[5, 5], "the scene shows through where nothing is to be said"
    assert np.array_equal(shown[1][0].get_array(), tall.image)
    # Every panel of a row has the shape of its image, the smaller edit too.
    assert {tuple(image.get_extent()) for image in shown[0]} == {(0, W, H, 0)}
    assert {tuple(image.get_extent()) for image in shown[1]} == {(0, 100, 200, 0)}


def test_rows_keep_the_shape_of_their_images(row, tmp_path):
    tall = Panels(**{**vars(row), "image": np.full((200, 100, 3), 10, np.uint8), **_tall_truth()})
    heights = []
    for rows in ([row], [row, tall]):
        gallery(rows, tmp_path / "sheet.png", panel_width=100)
        sheet = np.asarray(PilImage.open(tmp_path / "sheet.png"))
        assert sheet.shape[1] == len(TITLES) * 100
        heights.append(sheet.shape[0])
    assert heights[1] - heights[0] == pytest.approx(200 + 25, abs=1)


def _tall_truth():
    empty = np.zeros((200, 100), bool)
    return {
        "mask": empty,
        "anomaly": empty,
        "valid": ~empty,
        "raw": empty * 1.0,
        "refined": empty * 1.0,
    }


def test_jpeg_by_suffix_and_nothing_half_written(row, tmp_path):
    gallery([row], tmp_path / "sheet.JPG")
    assert PilImage.open(tmp_path / "sheet.JPG").format == "JPEG"
    with pytest.raises(UserError, match=r"sheet.gif' is no PNG or JPEG"):
        gallery([row], tmp_path / "sheet.gif")
    with pytest.raises(UserError, match=r"cannot write '.*absent/sheet.png' \(No such file"):
        gallery([row], tmp_path / "absent" / "sheet.png")
    with pytest.raises(ValueError, match="at least one row"):
        gallery([], tmp_path / "empty.png")
    assert [file.name for file in tmp_path.iterdir()] == ["sheet.JPG"]


def test_a_map_colour_depends_on_its_value_alone(row):
    figure = draw([row], (0, 0.5), 50)
    raw, refined = (figure.axes[i].images[0] for i in (4, 5))
    assert raw.norm.vmin == refined.norm.vmin == 0
    assert raw.norm.vmax == refined.norm.vmax == 0.5  # not what the maps hold
    assert np.array_equal(refined.to_rgba(np.array([5.0])), refined.to_rgba(np.array([0.5])))


def test_a_map_of_zeros_can_be_drawn(row, tmp_path):
    gallery([row], tmp_path / "sheet.png", value_range=(0.0, 0.0))
    assert (tmp_path / "sheet.png").is_file()


def test_the_same_feature_has_the_same_colour_in_both_maps():
    rng = np.random.default_rng(1)
    a = rng.normal(size=(16, 5, 7)).astype(np.float32)
    b = a.copy()
    b[:, 2, 3] = rng.normal(size=16) * 3
    first, second = feature_colours(a, b)
    assert first.shape == second.shape == (5, 7, 3)
    assert first.dtype == np.uint8
    same = np.ones((5, 7), bool)
    same[2, 3] = False
    assert np.array_equal(first[same], second[same])
    assert (first[2, 3] != second[2, 3]).any()
    again = feature_colours(a * 4, b)  # length is nothing to the cosine distance
    assert np.abs(again[0].astype(int) - first).max() <= 1


def test_feature_colours_follow_the_principal_axes_with_fixed_signs():
    # Two directions in 5 dimensions: the first component tells them apart, the others hold nothing.
    a = np.zeros((5, 4, 4), np.float32)
    a[0], a[1, :2] = 1.0, 2.0
    first, second = feature_colours(a, a)
    assert np.array_equal(first, second)
    assert len(np.unique(first[:2, :, 0])) == len(np.unique(first[2:, :, 0])) == 1
    assert {first[0, 0, 0], first[3, 0, 0]} == {0, 255}
    # The largest weight of the first axis is that of channel 1, which is high in the upper half.
    assert first[0, 0, 0] == 255


def test_mask_panel_names_hits_misses_and_false_alarms(row):
    found = verdicts(row)
    for (y, x), kind in {(30, 45): HIT, (30, 55): MISS, (30, 35): FALSE_ALARM, (5, 5): -1}.items():
        assert found[y, x] == kind
    assert (found[-10:] == VOID).all()


def test_void_hides_an_anomaly_in_the_truth_panel(row):
    anomaly = row.anomaly.copy()
    anomaly[-5:] = True
    assert np.array_equal(truths(replace(row, anomaly=anomaly)), truths(row))
    assert (truths(row)[20:40, 40:60] == ANOMALY).all()
