"""Picture files: upright, and as deep as messages of the same pixels."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PilImage
from support.image_data import SMOOTH, compressed, encoded, grey_rgb, message

from anomaly_detector_ros.imaging.images import ImageError, read_rgb, to_8_bit
from anomaly_detector_ros.imaging.messages import (
    compressed_to_rgb,
    image_to_rgb,
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


_MODES = {
    "png": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "tiff": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"],
    "webp": ["RGB", "RGBA"],
    "bmp": ["1", "L", "P", "RGB"],
    "ppm": ["L", "RGB"],
    "jpeg": ["L", "RGB", "CMYK"],
}
_TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@settings(max_examples=250, deadline=None)
@given(
    kind=st.sampled_from([(form, mode) for form, modes in _MODES.items() for mode in modes]),
    orientation=st.integers(1, 8),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 2**32),
    ranged=st.booleans(),
)
def test_any_format_mode_and_orientation(
    tmp_path_factory: pytest.TempPathFactory,
    kind: tuple[str, str],
    orientation: int,
    size: tuple[int, int],
    seed: int,
    ranged: bool,
) -> None:
    form, mode = kind
    rng = np.random.default_rng(seed)
    limits = (100.0, 3000.0) if ranged else None
    if mode in ("I;16", "I", "F"):
        dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        samples = rng.integers(0, 4096, size).astype(dtype)
        picture = PilImage.fromarray(samples)
        expected = grey_rgb(to_8_bit(samples, limits))
    else:
        colours = np.tile(rng.integers(0, 256, (*size, 1), np.uint8), 3) // [1, 2, 3]
        picture = PilImage.fromarray(colours.astype(np.uint8)).convert(mode)
        # Not through RGB, where Pillow spreads what has one channel.
        flat = picture.convert("L" if mode in ("1", "L", "LA") else "RGB")
        expected = np.array(flat.convert("RGB"))
    options: dict[str, object] = {"exif": PilImage.Exif()}
    options["exif"][0x0112] = orientation
    if form in ("bmp", "ppm"):  # which have no place for it
        orientation, options = 1, {}
    lossless = {"quality": 100, "subsampling": 0} if form == "jpeg" else {}
    lossless = {"lossless": True, "exact": True} if form == "webp" else lossless
    file = tmp_path_factory.mktemp("pictures") / f"picture.{form}"
    picture.save(file, **options, **lossless)
    found = read_rgb(file, limits)
    upright = _TURNS[orientation](expected)
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).max() <= (12 if form == "jpeg" else 0)


def test_a_jpeg_without_its_end_is_read_alike_in_files_and_messages(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = encoded(SMOOTH, "jpg")
    file = tmp_path / "cut.jpg"
    file.write_bytes(whole[:-2])
    msg, notes = compressed(whole[:-2], "jpeg"), []
    found = compressed_to_rgb(msg, note=notes.append)
    np.testing.assert_array_equal(found, compressed_to_rgb(compressed(whole, "jpeg")))
    np.testing.assert_array_equal(read_rgb(file), found)
    assert "without an end marker" in notes[0]
    assert notes[0] in caplog.text
    file.write_bytes(whole[: len(whole) // 2])
    for read in (
        lambda: read_rgb(file),
        lambda: compressed_to_rgb(compressed(file.read_bytes(), "")),
    ):
        with pytest.raises(ImageError, match="truncated"):
            read()
