import cv2
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
    Panels,
    feature_colours,
    gallery,
    map_colours,
    mask_colours,
    truth_colours,
)

H, W = 60, 100
CAPTION, GAP = 22, 6


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


def panel(sheet, row, column, *, width=100, heights=(60,)):
    """The middle of a panel; captions stand above their rows, a gap below the last."""
    height = heights[row]
    bottom = sheet.shape[0] - GAP - sum(h + CAPTION for h in heights[row + 1 :])
    left = GAP + column * (width + GAP)
    return sheet[bottom - height // 2, left + width // 2]


def test_sheet_holds_every_panel_of_every_row(row, tmp_path):
    file = tmp_path / "sheet.png"
    gallery([row, row], file, value_range=(0, 1), panel_width=100)
    sheet = np.asarray(PilImage.open(file))
    assert sheet.shape[1] == len(TITLES) * 106 + 6
    header = sheet.shape[0] - GAP - 2 * (H + CAPTION)
    assert 20 < header < 60
    for i in range(2):
        at = [panel(sheet, i, column, heights=(60, 60)) for column in range(len(TITLES))]
        assert at[0].tolist() == [120] * 3
        assert at[1].tolist() == [60] * 3
        assert np.array_equal(at[4], map_colours(np.array([[0.25]]), (0, 1))[0, 0])
        assert np.array_equal(at[5], map_colours(np.array([[0.5]]), (0, 1))[0, 0])
        assert np.abs(at[6] - np.array(MISS)).max() < 50
        assert np.abs(at[7] - np.array(ANOMALY)).max() < 50
    assert (sheet[:header] < 100).any(), "the header holds no text"


def test_rows_keep_the_shape_of_their_images(row, tmp_path):
    tall = Panels(**{**vars(row), "image": np.full((200, 100, 3), 10, np.uint8), **_tall_truth()})
    gallery([row, tall], tmp_path / "sheet.png", panel_width=50)
    sheet = np.asarray(PilImage.open(tmp_path / "sheet.png"))
    gallery([row], tmp_path / "one.png", panel_width=50)
    one = np.asarray(PilImage.open(tmp_path / "one.png"))
    assert sheet.shape[0] == one.shape[0] + CAPTION + 100
    assert panel(sheet, 1, 0, width=50, heights=(30, 100)).tolist() == [10] * 3


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


def test_a_map_colour_depends_on_its_value_alone():
    low, both = np.array([[0.2, 0.3]]), np.array([[0.2, 0.9]])
    assert np.array_equal(
        map_colours(low, (0, 1))[0, 0], map_colours(both, (0, 1))[0, 0]
    )  # no stretching to what the map holds
    assert np.array_equal(
        map_colours(np.array([[-1.0, 5.0]]), (0, 0.6)),
        map_colours(np.array([[0.0, 0.6]]), (0, 0.6)),
    )
    ramp = map_colours(np.linspace(0, 2, 50)[None], (0, 2))
    brightness = cv2.cvtColor(ramp, cv2.COLOR_RGB2LAB)[0, :, 0].astype(int)
    assert (np.diff(brightness) >= 0).all()
    assert brightness[-1] - brightness[0] > 200
    with pytest.raises(ValueError, match="empty"):
        map_colours(low, (1, 1))


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
    shown = mask_colours(row.image, row.mask, row.anomaly, row.valid).astype(int)
    for (y, x), colour in {(30, 45): HIT, (30, 55): MISS, (30, 35): FALSE_ALARM}.items():
        expected = 0.25 * (120 // 2 + 96) + 0.75 * np.array(colour)
        assert np.abs(shown[y, x] - expected).max() <= 1
    assert shown[5, 5].tolist() == [156] * 3
    assert len(np.unique(shown[-10:])) == 2, "void is hatched in two greys"


def test_void_hides_an_anomaly_in_the_truth_panel(row):
    anomaly = row.anomaly.copy()
    anomaly[-5:] = True
    assert np.array_equal(
        truth_colours(row.image, anomaly, row.valid),
        truth_colours(row.image, row.anomaly, row.valid),
    )
