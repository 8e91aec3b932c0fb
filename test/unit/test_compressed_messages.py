"""Compressed camera messages to RGB."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image as PilImage
from support.image_data import SMOOTH, compressed, encoded, grey_rgb

from anomaly_detector_ros.imaging.images import ImageError, decode_image
from anomaly_detector_ros.imaging.messages import (
    compressed_to_rgb,
)

RNG = np.random.default_rng(7)
RGB = RNG.integers(0, 256, (4, 6, 3), np.uint8)
GREY = RNG.integers(0, 256, (4, 6), np.uint8)
ALPHA = np.full((4, 6, 1), 9, np.uint8)


@pytest.mark.parametrize("text", ["png", "rgb8; png compressed bgr8", "", "bgr8; png compressed "])
def test_png(text: str) -> None:
    found = compressed_to_rgb(compressed(encoded(SMOOTH, "png"), text))
    np.testing.assert_array_equal(found, SMOOTH)


@pytest.mark.parametrize("text", ["jpeg", "jpg", "rgb8; jpeg compressed bgr8"])
def test_jpeg_is_decoded_as_opencv_does(text: str) -> None:
    data = encoded(SMOOTH, "jpg")
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    found = compressed_to_rgb(compressed(data, text))
    np.testing.assert_array_equal(found, expected)
    assert np.abs(found.astype(int) - SMOOTH).max() < 40


def test_swapped_colours_are_swapped_back() -> None:
    data = encoded(SMOOTH[..., ::-1], "png")
    found = compressed_to_rgb(compressed(data, "rgb8; png compressed rgb8"))
    np.testing.assert_array_equal(found, SMOOTH)


def test_grey_and_16_bit_grey_png() -> None:
    found = compressed_to_rgb(compressed(encoded(GREY, "png"), "mono8; png compressed "))
    np.testing.assert_array_equal(found, grey_rgb(GREY))
    deep = (GREY.astype(np.uint16) * 257) + 100
    msg = compressed(encoded(deep, "png"), "mono16; png compressed ")
    found = compressed_to_rgb(msg, grey_range=(0, 65535))
    np.testing.assert_array_equal(found, grey_rgb(GREY))


def test_transparency_is_dropped() -> None:
    rgba = np.concatenate([RGB, np.zeros((4, 6, 1), np.uint8)], 2)
    out = io.BytesIO()
    PilImage.fromarray(rgba).save(out, "PNG")
    np.testing.assert_array_equal(compressed_to_rgb(compressed(out.getvalue(), "png")), RGB)


def test_compressed_bayer_mosaic() -> None:
    mosaic = np.tile(np.array([[200, 100], [100, 30]], np.uint8), (4, 5))
    msg = compressed(encoded(mosaic, "png"), "bayer_rggb8; png compressed ")
    expected = np.full((8, 10, 3), (200, 100, 30), np.uint8)
    np.testing.assert_array_equal(compressed_to_rgb(msg), expected)


@pytest.mark.parametrize("kind", ["jpg", "png"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
def test_truncated_files_are_refused(kind: str, share: float) -> None:
    noisy = np.random.default_rng(0).integers(0, 256, (100, 120, 3), np.uint8)
    data = encoded(noisy, kind)
    data = data[: min(int(len(data) * share), len(data) - 2)]
    with pytest.raises(ImageError) as caught:
        compressed_to_rgb(compressed(data, kind))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lost", [1, 2])
@pytest.mark.parametrize("progressive", [0, 1])
@pytest.mark.parametrize("grey", [False, True])
def test_jpeg_without_its_end_marker_is_decoded_and_noted(
    lost: int, progressive: int, grey: bool
) -> None:
    pixels = SMOOTH[..., 0] if grey else SMOOTH
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive]
    data = cv2.imencode(".jpg", pixels, options)[1].tobytes()
    notes: list[str] = []
    found = compressed_to_rgb(compressed(data[:-lost], "jpeg"), note=notes.append)
    np.testing.assert_array_equal(found, compressed_to_rgb(compressed(data, "jpeg")))
    assert len(notes) == 1
    assert "end marker" in notes[0]


def test_truncated_jpeg_with_a_thumbnail_is_refused() -> None:
    # The thumbnail in the header has an end marker of its own.
    data = encoded(SMOOTH, "jpg")
    thumbnail = encoded(SMOOTH[:8, :8], "jpg")
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    whole = data[:2] + segment + data[2:]
    assert compressed_to_rgb(compressed(whole, "jpeg")).shape == SMOOTH.shape
    with pytest.raises(ImageError, match="truncated"):
        compressed_to_rgb(compressed(whole[:-30], "jpeg"))


def test_altered_png_is_refused() -> None:
    data = bytearray(encoded(SMOOTH, "png"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(ImageError, match="corrupt"):
        compressed_to_rgb(compressed(bytes(data), "png"))


@pytest.mark.parametrize(
    ("data", "text", "reason"),
    [
        (b"", "jpeg", "no data"),
        (b"hello, world" * 9, "jpeg", "no JPEG"),
        (encoded(SMOOTH, "png"), "16UC1; compressedDepth png", "depth image"),
        (b"\xff\xd8\xff", "jpeg", "no JPEG|corrupt"),
        (b"\x89PNG\r\n\x1a\n", "png", "no JPEG|corrupt"),
    ],
)
def test_bad_compressed_images(data: bytes, text: str, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        compressed_to_rgb(compressed(data, text))


def test_whatever_the_decoder_raises_is_an_image_error() -> None:
    buffer = io.BytesIO()
    PilImage.fromarray(np.zeros((23, 31), np.uint16)).save(buffer, "TIFF")
    tiff = bytearray(buffer.getvalue())
    entry = tiff.index((273).to_bytes(2, "little") + (4).to_bytes(2, "little"))
    tiff[entry + 2] = 5  # StripOffsets as a fraction: Pillow raises TypeError
    with pytest.raises(ImageError, match="truncated or corrupt"):
        decode_image(bytes(tiff))


def test_too_many_pixels_are_refused_before_decoding() -> None:
    with pytest.raises(ImageError, match=r"64x48, over the limit of 3000 pixels"):
        compressed_to_rgb(compressed(encoded(SMOOTH, "png"), "png"), max_pixels=3000)
    # A header that promises 60000 x 60000 pixels, with nothing behind it.
    png = bytearray(encoded(SMOOTH, "png"))
    png[16:24] = (60000).to_bytes(4, "big") * 2
    import zlib

    png[29:33] = zlib.crc32(bytes(png[12:29])).to_bytes(4, "big")
    with pytest.raises(ImageError, match="over the limit"):
        decode_image(bytes(png))
