"""Camera messages to RGB, and results to messages, against arrays built by hand."""

from __future__ import annotations

import array
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.image_data import grey_rgb, message

from anomaly_detector_ros.imaging.images import ImageError, to_8_bit
from anomaly_detector_ros.imaging.messages import (
    ENCODINGS,
    image_fields,
    image_to_rgb,
)

RNG = np.random.default_rng(7)
RGB = RNG.integers(0, 256, (4, 6, 3), np.uint8)
GREY = RNG.integers(0, 256, (4, 6), np.uint8)
ALPHA = np.full((4, 6, 1), 9, np.uint8)


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


I420 = ("i420", "yu12", "yuv420", "yuv420p")
YUV = (*I420, "nv12", "nv21", "nv24", "8uc2", "uyvy", "yuv422", "yuyv", "yuy2", "yuv422_yuy2")


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
            elif name == "nv24":
                pairs = np.tile([u, v], (height, width))
                planes = [np.hstack([rows, spare]), np.hstack([pairs, spare, spare])]
            elif name in I420:
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
    grey = ("mono8", "8uc1", "grey", "y8", "mono16", "16uc1", "y16", "32fc1")
    channels = 1 if name in grey else 4 if "a" in name or name.endswith("4") else 3
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
    assert np.abs(found - expected).max() <= (2 if msg.encoding.lower() in YUV else 1)


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


def test_full_chroma_of_pixels_that_differ() -> None:
    rng = np.random.default_rng(4)
    yuv = rng.integers(60, 180, (5, 7, 3), np.uint8)  # odd sides too
    data = yuv[..., 0].tobytes() + yuv[..., 1:].tobytes()
    msg = SimpleNamespace(height=5, width=7, encoding="nv24", is_bigendian=0, step=7, data=data)
    luma, cb, cr = 1.164 * (yuv[..., 0] - 16.0), yuv[..., 1] - 128.0, yuv[..., 2] - 128.0
    expected = [luma + 1.596 * cr, luma - 0.813 * cr - 0.391 * cb, luma + 2.018 * cb]
    assert np.abs(image_to_rgb(msg) - np.stack(expected, 2).clip(0, 255)).max() <= 2


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
