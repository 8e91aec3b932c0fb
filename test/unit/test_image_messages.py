"""Camera messages to RGB against arrays built by hand."""

from __future__ import annotations

import array
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image as PilImage

from anomaly_detector_ros.imaging.images import ImageError, decode_image, read_rgb
from anomaly_detector_ros.imaging.messages import compressed_to_rgb, image_fields, image_to_rgb

RNG = np.random.default_rng(7)
RGB = RNG.integers(0, 256, (4, 6, 3), np.uint8)
GREY = RNG.integers(0, 256, (4, 6), np.uint8)
ALPHA = np.full((4, 6, 1), 9, np.uint8)


def message(pixels: np.ndarray, encoding: str, padding: int = 0, big: bool = False) -> Any:
    """An Image message of the pixels, with as many bytes of rubbish behind each row."""
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    if pixels.dtype.itemsize > 1:
        rows = np.ascontiguousarray(rows.astype(pixels.dtype.newbyteorder(">" if big else "<")))
    rows = np.ascontiguousarray(rows).view(np.uint8)
    data = np.hstack([rows, np.full((height, padding), 0xAB, np.uint8)])
    return SimpleNamespace(
        height=height, width=width, encoding=encoding, is_bigendian=int(big),
        step=data.shape[1], data=data.tobytes(),
    )  # fmt: skip


def grey_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


PLAIN = {
    "rgb8": (RGB, RGB),
    "bgr8": (RGB[..., ::-1], RGB),
    "8UC3": (RGB[..., ::-1], RGB),
    "rgba8": (np.concatenate([RGB, ALPHA], 2), RGB),
    "bgra8": (np.concatenate([RGB[..., ::-1], ALPHA], 2), RGB),
    "mono8": (GREY, grey_rgb(GREY)),
    "8UC1": (GREY, grey_rgb(GREY)),
}


@pytest.mark.parametrize("padding", [0, 1, 5, 12])
@pytest.mark.parametrize("encoding", list(PLAIN))
def test_interleaved_encodings(encoding: str, padding: int) -> None:
    pixels, expected = PLAIN[encoding]
    found = image_to_rgb(message(np.ascontiguousarray(pixels), encoding, padding))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("padding", [0, 2, 3])
def test_mono16_is_scaled_and_rounded(big: bool, padding: int) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    found = image_to_rgb(message(values, "mono16", padding, big))
    # 255 / 65535 is 1 / 257, which never leaves exactly a half.
    np.testing.assert_array_equal(found, grey_rgb((values.astype(int) + 128) // 257))


def test_single_byte_encodings_have_no_endianness() -> None:
    found = image_to_rgb(message(RGB, "rgb8", big=True))
    np.testing.assert_array_equal(found, RGB)


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize(
    ("encoding", "order"),
    [
        ("yuv422", "uyvy"), ("uyvy", "uyvy"), ("yuv422_yuy2", "yuyv"), ("yuyv", "yuyv"),
    ],
)  # fmt: skip
def test_yuv(encoding: str, order: str, padding: int) -> None:
    # BT.601 with Y in 16..235, worked out by hand for pure colours.
    colours = {(255, 0, 0): (81, 90, 240), (0, 255, 0): (145, 54, 34), (0, 0, 255): (41, 240, 110)}
    for rgb, (y, u, v) in colours.items():
        pair = {"uyvy": [[u, y], [v, y]], "yuyv": [[y, u], [y, v]]}[order]
        pixels = np.tile(np.array(pair, np.uint8), (2, 2, 1))
        found = image_to_rgb(message(pixels, encoding, padding))
        assert found.shape == (2, 4, 3)
        assert np.abs(found.astype(int) - rgb).max() <= 2


@pytest.mark.parametrize("padding", [0, 7])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer(pattern: str, padding: int) -> None:
    # A picture of one colour: every interpolation gives that colour back.
    colour = {"r": 200, "g": 100, "b": 30}
    tile = np.array([[colour[pattern[0]], colour[pattern[1]]],
                     [colour[pattern[2]], colour[pattern[3]]]], np.uint8)  # fmt: skip
    mosaic = np.tile(tile, (4, 5))
    found = image_to_rgb(message(mosaic, f"bayer_{pattern}8", padding))
    np.testing.assert_array_equal(found, np.full((8, 10, 3), (200, 100, 30), np.uint8))


def test_rgb_without_padding_is_not_copied() -> None:
    msg = message(RGB, "rgb8")
    msg.data = bytearray(msg.data)
    found = image_to_rgb(msg)
    msg.data[0] ^= 0xFF
    assert found[0, 0, 0] == RGB[0, 0, 0] ^ 0xFF


@pytest.mark.parametrize("kind", [bytes, bytearray, list, memoryview])
def test_data_of_any_kind(kind: type) -> None:
    msg = message(RGB, "bgr8")
    msg.data = kind(msg.data)
    np.testing.assert_array_equal(image_to_rgb(msg), RGB[..., ::-1])
    msg.data = array.array("B", bytes(msg.data))
    np.testing.assert_array_equal(image_to_rgb(msg), RGB[..., ::-1])
    msg.data = np.frombuffer(msg.data, np.uint8)
    np.testing.assert_array_equal(image_to_rgb(msg), RGB[..., ::-1])


def test_last_rows_padding_may_be_missing() -> None:
    msg = message(RGB, "rgb8", padding=5)
    msg.data = msg.data[:-5]
    np.testing.assert_array_equal(image_to_rgb(msg), RGB)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"encoding": "32FC1"}, "encoding '32FC1' is not supported.*rgb8"),
        ({"encoding": ""}, "encoding '' is not supported"),
        ({"encoding": "x\n" * 500}, "not supported"),
        ({"height": 0}, "6x0"),
        ({"width": 0}, "0x4"),
        ({"step": 17}, "step is 17 bytes.*takes 18"),
        ({"step": 0}, "step is 0"),
        ({"data": b""}, "truncated: 0 bytes of 72"),
        ({"data": bytes(71)}, "truncated: 71 bytes of 72"),
        ({"height": 2**31, "width": 2**31}, "step"),
        ({"height": 2**31}, "truncated"),
    ],
)
def test_bad_images(change: dict[str, Any], reason: str) -> None:
    msg = message(RGB, "rgb8")
    vars(msg).update(change)
    with pytest.raises(ImageError, match=reason) as caught:
        image_to_rgb(msg)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_images_of_very_many_pixels_are_refused(share: float) -> None:
    # With all its data, or with none: 60000 x 60000 pixels take 3.6 GB, so fewer do for the first.
    side = 60000 if share == 0.0 else 9000
    data = np.zeros(int(side * side * share), np.uint8)
    msg = SimpleNamespace(
        height=side, width=side, encoding="mono8", is_bigendian=0, step=side, data=data
    )
    with pytest.raises(ImageError, match="truncated" if share == 0.0 else "over the limit"):
        image_to_rgb(msg)


@pytest.mark.parametrize("step", [2**32 - 1, 2**31])
def test_steps_far_beyond_the_data_are_refused(step: int) -> None:
    msg = message(RGB, "rgb8")
    msg.step = step
    with pytest.raises(ImageError, match="truncated"):
        image_to_rgb(msg)


def test_odd_width_in_yuv_is_refused() -> None:
    with pytest.raises(ImageError, match="5x2 pixels cannot be converted from yuv422"):
        image_to_rgb(message(np.zeros((2, 5, 2), np.uint8), "yuv422"))


# -- compressed ------------------------------------------------------------------------------------

SMOOTH = np.dstack(np.meshgrid(np.arange(64) * 3, np.arange(48) * 4)).astype(np.uint8)
SMOOTH = np.dstack([SMOOTH, np.full((48, 64), 90, np.uint8)])


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    bgr = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return cv2.imencode(f".{kind}", bgr)[1].tobytes()


def compressed(data: bytes, text: str) -> Any:
    return SimpleNamespace(format=text, data=array.array("B", data))


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
    found = compressed_to_rgb(compressed(encoded(deep, "png"), "mono16; png compressed "))
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


# -- to messages -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array_", "encoding", "step"),
    [
        (GREY, "mono8", 6),
        (RGB, "rgb8", 18),
        (GREY.astype(np.float32) / 255, "32FC1", 24),
        (GREY.astype(np.uint16) * 200, "16UC1", 12),
        (RGB[:, ::2], "rgb8", 9),
    ],
)
def test_fields_of_a_message(array_: np.ndarray, encoding: str, step: int) -> None:
    fields = image_fields(array_, encoding)
    assert (fields["height"], fields["width"]) == array_.shape[:2]
    assert (fields["encoding"], fields["step"], fields["is_bigendian"]) == (encoding, step, 0)
    back = np.frombuffer(fields["data"], array_.dtype).reshape(array_.shape)
    np.testing.assert_array_equal(back, array_)


@pytest.mark.parametrize(
    ("array_", "encoding"),
    [(GREY, "rgb8"), (RGB, "mono8"), (GREY, "32FC1"), (GREY[0], "mono8"), (GREY, "bgr8")],
)
def test_arrays_that_do_not_fit_the_encoding(array_: np.ndarray, encoding: str) -> None:
    with pytest.raises(ValueError, match=encoding):
        image_fields(array_, encoding)


def test_cv_bridge_gives_the_same() -> None:
    boost = pytest.importorskip("cv_bridge.boost.cv_bridge_boost", reason="no cv_bridge here")
    mosaic = RNG.integers(0, 256, (8, 10), np.uint8)
    for name, code in (("bayer_rggb8", cv2.COLOR_BayerBG2RGB), ("mono8", cv2.COLOR_GRAY2RGB)):
        np.testing.assert_array_equal(
            boost.cvtColor2(mosaic, name, "rgb8"), cv2.cvtColor(mosaic, code)
        )


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_picture_files_are_set_upright_mirrored_ones_too(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    shown = np.zeros((32, 48, 3), np.uint8)
    shown[:16, :24], shown[:16, 24:], shown[16:, :24] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    # What the sensor recorded, by the Exif standard's table: where row 0 and column 0 are.
    recorded = {
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.transpose(1, 0, 2),
        6: shown.transpose(1, 0, 2)[::-1],
        7: shown.transpose(1, 0, 2)[::-1, ::-1],
        8: shown.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = PilImage.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"picture{suffix}"
    PilImage.fromarray(np.ascontiguousarray(recorded)).save(file, exif=exif, quality=95)
    found = read_rgb(file)
    assert found.shape == shown.shape
    assert np.abs(found.astype(int) - shown).mean() < 6
