"""The images that stand for one frame's detection."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from anomaly_detector_ros.detection import Detection
from anomaly_detector_ros.imaging.messages import image_fields
from anomaly_detector_ros.imaging.rendering import (
    IMAGE_OUTPUTS,
    confidence,
    encode_jpeg,
    encode_png,
    overlay,
    render,
    segments_16_bit,
)

HEIGHT, WIDTH = 40, 60
IMAGE = np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture
def detection() -> Detection:
    heatmap = np.zeros((HEIGHT, WIDTH), np.float32)
    heatmap[10:30, 20:40] = 0.9
    segments = np.zeros((HEIGHT, WIDTH), np.int32)
    segments[10:30, 20:40] = 7
    edited = 255 - IMAGE
    spread = heatmap / 10
    return Detection(
        heatmap, heatmap >= 0.5, segments, edited, 0.9, {"total": 0.1}, spread, heatmap
    )


def test_every_output_fits_its_encoding(detection: Detection) -> None:
    for name, spec in IMAGE_OUTPUTS.items():
        array = render(name, IMAGE, detection)
        fields = image_fields(array, spec.encoding)
        assert (fields["height"], fields["width"]) == (HEIGHT, WIDTH), name


def test_values(detection: Detection) -> None:
    np.testing.assert_array_equal(render("heatmap", IMAGE, detection), detection.heatmap)
    mask = render("mask", IMAGE, detection)
    assert (mask[15, 25], mask[0, 0], mask.sum()) == (255, 0, 255 * 400)
    assert render("confidence", IMAGE, detection)[15, 25] == 230  # 229.5 in float32 is above
    segments = render("segments", IMAGE, detection)
    assert segments.dtype == np.uint16
    assert (segments[15, 25], segments[0, 0]) == (7, 0)
    np.testing.assert_array_equal(render("edited", IMAGE, detection), 255 - IMAGE)
    np.testing.assert_array_equal(render("uncertainty", IMAGE, detection), detection.uncertainty)


def test_confidence_is_rounded_and_bounded() -> None:
    found = confidence(np.array([0, 0.001, 0.002, 0.5, 0.999, 1, 2, -1, np.nan], np.float32))
    assert found.tolist() == [0, 0, 1, 128, 255, 255, 255, 0, 0]


def test_segment_ids_that_do_not_fit_are_numbered_anew() -> None:
    found = segments_16_bit(np.array([[0, 5, 70000], [70000, -1, 5]], np.int32))
    assert found.tolist() == [[0, 1, 2], [2, 0, 1]]
    kept = segments_16_bit(np.array([[0, 5, 65535]], np.int32))
    assert kept.tolist() == [[0, 5, 65535]]


def test_overlay_leaves_nominal_ground_as_it_is(detection: Detection) -> None:
    before = IMAGE.copy()
    found = overlay(IMAGE, detection)
    np.testing.assert_array_equal(IMAGE, before)
    np.testing.assert_array_equal(found[:6], IMAGE[:6])
    np.testing.assert_array_equal(found[:, :16], IMAGE[:, :16])
    inside = found[16:24, 26:34].astype(int)
    assert inside[..., 0].mean() > IMAGE[16:24, 26:34, 0].mean() + 30
    assert (found[10:30, 20:40] != IMAGE[10:30, 20:40]).any(2).mean() > 0.95


def test_overlay_draws_the_outline_of_the_mask(detection: Detection) -> None:
    found = overlay(IMAGE, detection)
    assert (found[10, 22:38] == 255).all()
    assert (found[12:28, 39] == 255).all()


def test_overlay_of_an_empty_detection_is_the_image() -> None:
    empty = np.zeros((HEIGHT, WIDTH), np.float32)
    nothing = Detection(
        empty, empty > 0, empty.astype(np.int32), IMAGE, 0.0, {"total": 0.0}, empty, empty
    )
    np.testing.assert_array_equal(overlay(IMAGE, nothing), IMAGE)


def test_heat_grows_with_the_value(detection: Detection) -> None:
    heatmap = np.tile(np.linspace(0, 1, WIDTH, dtype=np.float32), (HEIGHT, 1))
    ramp = Detection(
        heatmap, heatmap > 2, detection.segments, IMAGE, 1.0, {"total": 0.0}, heatmap, heatmap
    )  # fmt: skip
    grey = np.full_like(IMAGE, 100)
    change = np.abs(overlay(grey, ramp).astype(int) - 100).sum(2)[0]
    assert (change[: WIDTH // 5] == 0).all()
    assert change[-1] > change[WIDTH // 2] > change[WIDTH // 3] > 0


def test_calibrated_heat_shows_orders_of_magnitude(detection: Detection) -> None:
    row = np.float32([0, 0.5, 0.9, 0.99, 0.999, 1])
    heatmap = np.tile(np.repeat(row, WIDTH // len(row)), (HEIGHT, 1))
    found = replace(detection, heatmap=heatmap, mask=heatmap > 2, calibrated=True)
    grey = np.full_like(IMAGE, 100)
    change = np.abs(overlay(grey, found).astype(int) - 100).sum(2)[0, :: WIDTH // len(row)]
    assert (change[:3] == 0).all()
    assert (np.diff(change[2:]) > 0).all()


def test_files_decode_to_what_was_encoded() -> None:
    png = cv2.imdecode(np.frombuffer(encode_png(IMAGE), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(png[..., ::-1], IMAGE)
    deep = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 20
    png = cv2.imdecode(np.frombuffer(encode_png(deep), np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(png, deep)
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 250
    jpeg = cv2.imdecode(np.frombuffer(encode_jpeg(red), np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(jpeg[..., ::-1].astype(int) - red).max() < 8


def test_unknown_output(detection: Detection) -> None:
    with pytest.raises(ValueError, match="'nope' is none of heatmap"):
        render("nope", IMAGE, detection)
