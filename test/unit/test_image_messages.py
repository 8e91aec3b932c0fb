"""Camera messages to RGB against arrays built by hand."""

from __future__ import annotations

import array
import io
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PilImage

from anomaly_detector_ros.imaging.images import ImageError, decode_image, read_rgb, to_8_bit
from anomaly_detector_ros.imaging.messages import (
    ENCODINGS,
    compressed_to_rgb,
    image_fields,
    image_to_rgb,
)

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
    found = image_to_rgb(message(values, "mono16", padding, big), grey_range=(0, 65535))
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
        ({"encoding": "rgb565"}, "encoding 'rgb565' is not supported.*rgb8"),
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


PLANAR = ("nv12", "nv21", "i420", "yuv420", "yuv420p")
YUV = (*PLANAR, "uyvy", "yuv422", "yuyv", "yuy2", "yuv422_yuy2")


@st.composite
def _messages(draw: st.DrawFn) -> tuple[Any, np.ndarray, tuple[float, float] | None]:
    """An Image of any encoding, size, byte order and step; its RGB, worked out by hand; a range."""
    encoding = draw(st.sampled_from(ENCODINGS))
    name = encoding.lower()
    big, padding = draw(st.booleans()), 2 * draw(st.integers(0, 9))
    height, width = 2 * draw(st.integers(1, 9)), 2 * draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    limits: tuple[float, float] | None = None
    if name.startswith("bayer") or name in YUV:
        # One colour, which every interpolation gives back.
        if name.startswith("bayer"):
            height, width = height + 2, width + 2
            deep = name.endswith("16")
            colour = rng.integers(0, 4096 if deep else 256, 3)
            tile = [["rgb".index(name[6 + 2 * r + c]) for c in (0, 1)] for r in (0, 1)]
            samples = colour[np.tile(tile, (height // 2, width // 2))]
            msg = message(samples.astype(np.uint16 if deep else np.uint8), encoding, padding, big)
            if deep:
                limits = (0.0, 4095.0)
                colour = np.rint(colour * 255.0 / 4095.0)
        else:
            y, u, v = rng.integers(100, 160, 3)
            rows, spare = np.full((height, width), y), np.zeros((height, padding))
            if name in ("nv12", "nv21"):
                pairs = np.tile([u, v] if name == "nv12" else [v, u], (height // 2, width // 2))
                planes = [np.hstack([rows, spare]), np.hstack([pairs, spare[: height // 2]])]
            elif name in ("i420", "yuv420", "yuv420p"):
                half = np.full((height // 2, width // 2), 1)
                spare_half = spare[: height // 2, : padding // 2]
                planes = [np.hstack([rows, spare]),
                          *(np.hstack([half * c, spare_half]) for c in (u, v))]  # fmt: skip
            else:
                order = [u, y, v, y] if name in ("uyvy", "yuv422") else [y, u, y, v]
                planes = [np.hstack([np.tile(order, (height, width // 2)), spare])]
            data = b"".join(plane.astype(np.uint8).tobytes() for plane in planes)
            msg = SimpleNamespace(
                height=height, width=width, encoding=encoding, is_bigendian=int(big),
                step=planes[0].shape[1], data=data,
            )  # fmt: skip
            luma, cb, cr = 1.164 * (y - 16.0), u - 128.0, v - 128.0  # BT.601
            colour = np.array(
                [luma + 1.596 * cr, luma - 0.813 * cr - 0.391 * cb, luma + 2.018 * cb]
            )
        return msg, np.broadcast_to(colour, (height, width, 3)), limits
    channels = {"mono8": 1, "8uc1": 1, "mono16": 1, "16uc1": 1, "32fc1": 1}.get(name, 3)
    channels = 4 if name in ("rgba8", "bgra8", "8uc4") else channels
    dtype = np.float32 if name == "32fc1" else np.uint16 if "16" in name else np.uint8
    samples = rng.integers(0, 256 if dtype == np.uint8 else 16384, (height, width, channels))
    samples = samples.astype(dtype)
    msg = message(samples, encoding, padding, big)
    expected = samples.astype(float)
    if dtype != np.uint8:
        limits = draw(st.sampled_from([None, (1000.0, 9000.0)]))
        low, high = limits or np.percentile(expected, (0.5, 99.5))
        expected = np.rint(np.clip((expected - low) / (high - low), 0, 1) * 255)
    if channels == 1:
        return msg, np.repeat(expected, 3, axis=2), limits
    swapped = name.startswith(("bgr", "8uc", "16uc"))
    return msg, expected[..., 2::-1] if swapped else expected[..., :3], limits


@settings(max_examples=400, deadline=None)
@given(_messages())
def test_any_encoding_size_byte_order_and_step(
    case: tuple[Any, np.ndarray, tuple[float, float] | None],
) -> None:
    msg, expected, limits = case
    found = image_to_rgb(msg, grey_range=limits)
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= (2 if msg.encoding in YUV else 1)


@pytest.mark.parametrize("encoding", ["nv12", "nv21", "i420", "NV12", "YUV420"])
def test_planes_of_pixels_that_differ(encoding: str) -> None:
    # Grey: chroma is neutral, so the luma alone tells, each pixel's at its place.
    luma = np.arange(16, 16 + 48, dtype=np.uint8).reshape(6, 8)
    data = luma.tobytes() + bytes([128]) * 24
    for step in (8, 12):  # the second counts the chroma's bytes, as DepthAI does
        msg = SimpleNamespace(
            height=6, width=8, encoding=encoding, is_bigendian=0, step=step, data=data
        )
        expected = np.rint((luma - 16.0) * 255 / 219)
        assert np.abs(image_to_rgb(msg) - expected[..., None]).max() <= 1
    msg.data = data[:-1]
    with pytest.raises(ImageError, match="truncated"):
        image_to_rgb(msg)
    msg.height = 5
    with pytest.raises(ImageError, match="halves both sides"):
        image_to_rgb(msg)


def test_14_bit_counts_keep_their_contrast() -> None:
    counts = np.linspace(7700, 8400, 96 * 160).reshape(96, 160).astype(np.uint16)
    notes: list[str] = []
    found = image_to_rgb(message(counts, "16UC1"), note=notes.append)
    assert len(np.unique(found)) == 256
    assert "percentiles 0.5 and 99.5" in notes[0]
    assert "grey_range" in notes[0]


def test_floats_that_are_not_finite() -> None:
    samples = np.array([[np.nan, 0.0, 0.5, 1.0, np.inf, -np.inf]], np.float32)
    np.testing.assert_array_equal(to_8_bit(samples, (0, 1)), [[0, 0, 128, 255, 255, 0]])
    with pytest.raises(ImageError, match="no finite number"):
        image_to_rgb(message(np.full((2, 2), np.nan, np.float32), "32FC1"))


def test_all_alike_is_black_and_few_specks_are_seen() -> None:
    flat = np.full((40, 40), 9000, np.uint16)
    assert not to_8_bit(flat).any()
    flat[3, 3] = 9100
    assert to_8_bit(flat)[3, 3] == 255


@pytest.mark.parametrize("shape", [(2, 8), (8, 2)])
def test_too_small_a_mosaic_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="too small for bayer_rggb8"):
        image_to_rgb(message(np.full(shape, 90, np.uint8), "bayer_rggb8"))


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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["L", "RGB", "I;16", "F", "RGB;16", "RGB;F"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_tiffs_are_set_upright_once(
    tmp_path: Path, orientation: int, kind: str, order: str
) -> None:
    recorded = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 9
    if not kind.startswith("RGB"):
        recorded = recorded[..., 0]
    ceiling = {"L": 255, "RGB": 255, "I;16": 65535, "F": 1.0, "RGB;16": 65535, "RGB;F": 1.0}[kind]
    dtype = {255: "u1", 65535: "u2", 1.0: "f4"}[ceiling]
    samples = recorded.astype(dtype) * np.dtype(dtype).type(257 if ceiling == 65535 else 1)
    if ceiling == 1.0:
        samples /= 255
    file = tmp_path / "picture.tif"
    file.write_bytes(_tiff(samples, orientation, order))
    found = read_rgb(file, grey_range=(0.0, ceiling))
    # Where row 0 and column 0 of what was recorded are, by the TIFF standard's table.
    upright = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a),
    }[orientation](recorded)
    np.testing.assert_array_equal(found, upright if upright.ndim == 3 else grey_rgb(upright))


def _tiff(samples: np.ndarray, orientation: int, order: str) -> bytes:
    """An uncompressed TIFF, written by hand, as Pillow cannot write deep colours."""
    channels = 1 if samples.ndim == 2 else 3
    size = samples.dtype.itemsize
    data = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    tags = [
        (256, samples.shape[1]), (257, samples.shape[0]), (258, *[8 * size] * channels), (259, 1),
        (262, 1 if channels == 1 else 2), (273, 0), (274, orientation), (277, channels),
        (278, samples.shape[0]), (279, len(data)),
        (339, *[3 if samples.dtype.kind == "f" else 1] * channels),
    ]  # fmt: skip
    after = 8 + 2 + 12 * len(tags) + 4
    long_values, entries = b"", b""
    strip = after + 6 * sum(len(tag) > 3 for tag in tags)
    for number, *values in tags:
        values = [strip] if number == 273 else values
        entries += struct.pack(f"{order}HHI", number, 3, len(values))
        if len(values) > 2:
            entries += struct.pack(f"{order}I", after + len(long_values))
            long_values += struct.pack(f"{order}{len(values)}H", *values)
        else:
            entries += struct.pack(f"{order}{len(values)}H", *values).ljust(4, b"\0")
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8)
    return head + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + long_values + data


def test_16_bit_colours_are_stretched_alike_in_files_and_messages(tmp_path: Path) -> None:
    colours = np.random.default_rng(5).integers(300, 4000, (20, 30, 3)).astype(np.uint16)
    file = tmp_path / "deep.png"
    cv2.imwrite(str(file), colours[..., ::-1])
    np.testing.assert_array_equal(read_rgb(file), image_to_rgb(message(colours, "rgb16")))
    for suffix in (".ppm", ".tif"):
        cv2.imwrite(str(file.with_suffix(suffix)), colours[..., ::-1])
        np.testing.assert_array_equal(read_rgb(file.with_suffix(suffix)), read_rgb(file))
    grey = colours[..., 0]
    floats = file.with_suffix(".tiff")
    cv2.imwrite(str(floats), grey.astype(np.float64) / 4000)
    assert np.abs(read_rgb(floats).astype(int) - grey_rgb(to_8_bit(grey))).max() <= 1
    cv2.imwrite(str(file), grey)
    expected = image_to_rgb(message(np.ascontiguousarray(grey), "16UC1"))
    np.testing.assert_array_equal(read_rgb(file), expected)
    png = compressed(file.read_bytes(), "16UC1; png compressed ")
    np.testing.assert_array_equal(compressed_to_rgb(png), expected)


def test_altered_png_files_are_refused(tmp_path: Path) -> None:
    data = bytearray(encoded(SMOOTH, "png"))
    data[len(data) // 2] ^= 0xFF
    file = tmp_path / "altered.png"
    file.write_bytes(data)
    with pytest.raises(ImageError, match="corrupt"):
        read_rgb(file)
