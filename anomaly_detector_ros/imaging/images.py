"""Picture files: reading and decoding them safely."""

from __future__ import annotations

import io
import logging
import struct
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import ExifTags, PpmImagePlugin, TiffImagePlugin, UnidentifiedImageError
from PIL import Image as PilImage

from anomaly_detector_ros.errors import UserError, one_line

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
MAX_PIXELS = 80_000_000
"""Compressed images of more pixels are refused before they are decoded."""

PERCENTILES = (0.5, 99.5)
"""Of a picture's samples of more than 8 bits: what becomes 0 and 255 where no range is given."""

_MAX_SHOWN = 60
_BITS_PER_SAMPLE, _SAMPLE_FORMAT, _FLOAT = 258, 339, 3  # of a TIFF
_END = b"\xff\xd9"  # of a JPEG
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"II*\0", b"MM\0*", b"BM", b"P5", b"P6")
_FILLS = (b"", b"\x55" * 999, b"\xaa" * 999, b"\xfe" * 999)

Range = tuple[float, float]
Note = Callable[[str], None]
"""Takes a line about a picture that could be read, but not as it stands."""


class ImageError(UserError):
    """A file or message without a usable picture: unknown encoding, wrong size, corrupt data."""


def is_picture(file: Path) -> bool:
    """Whether a file begins as a picture of a format that :func:`decode_image` takes."""
    with file.open("rb") as stream:
        data = stream.read(12)
    return data.startswith(_BEGINNINGS) or (data[:4], data[8:]) == (b"RIFF", b"WEBP")


@lru_cache(maxsize=1000)
def say_once(source: str, text: str) -> None:
    """Logs a line about the pictures of a source (a folder, a topic), the first time only."""
    logging.getLogger(__name__).warning("%s: %s", source, text)


def read_rgb(file: Path, grey_range: Range | None = None) -> np.ndarray:
    """A picture file, upright: uint8 RGB (H, W, 3); more than 8 bits as :func:`to_8_bit` has it.

    Raises:
        ImageError: missing, truncated, corrupt, or no picture.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot read '{file}' ({error.strerror}): give a picture file") from error
    try:
        array = decode_image(
            data,
            upright=True,
            grey_range=grey_range,
            note=lambda text: say_once(str(file.parent), text),
        )
    except ImageError as error:
        raise ImageError(f"cannot read '{file}': {error}") from error
    return array if array.ndim == 3 else cv2.cvtColor(array, cv2.COLOR_GRAY2RGB)


def decode_image(
    data: Any,
    max_pixels: int = MAX_PIXELS,
    *,
    upright: bool = False,
    grey_range: Range | None = None,
    note: Note = lambda _: None,
) -> np.ndarray:
    """Decode a picture file held in memory: uint8 RGB (H, W, 3), or uint8 (H, W) for a grey one.

    A JPEG that lacks pixels is refused, one that lacks its end marker only is noted. One whose
    coded data is altered inside often still decodes, as JPEG carries no check sum.

    Args:
        data: the file's bytes.
        max_pixels: larger pictures are refused.
        upright: turn and mirror it as the camera noted in the file.
        grey_range: see :func:`to_8_bit`.
        note: gets what should be said of the picture's source once.

    Raises:
        ImageError: data that are empty, truncated, corrupt or no picture, or too many pixels.
    """
    data = np.frombuffer(data, np.uint8).tobytes()
    if not data:
        raise ImageError("compressed image holds no data: check the publisher")
    formats = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM")
    data, orientation = _tiff_orientation(data)
    try:
        if _beyond_pillow(data, max_pixels):
            samples = _opencv_samples(data)
        else:
            with PilImage.open(io.BytesIO(data), formats=formats) as picture:
                _bound(*picture.size, max_pixels)
                samples = _samples(picture, data, note)
                if upright:  # only now: Pillow swallows the faults of a PNG that this loads
                    orientation = max(orientation, _orientation(picture))
        if upright:
            samples = _turned(samples, orientation)
        return samples if samples.dtype == np.uint8 else to_8_bit(samples, grey_range, note)
    except PilImage.DecompressionBombError as error:
        raise ImageError(
            f"compressed image is over the limit of {max_pixels} pixels: scale it down"
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            "compressed image is no JPEG, PNG, WebP, TIFF or BMP: check the publisher's format"
        ) from error
    except ImageError:
        raise
    except Exception as error:
        # Pillow's decoders raise nearly anything on corrupt data: SyntaxError, TypeError, ...
        raise ImageError(f"compressed image is truncated or corrupt: {quoted(error)}") from error


def to_8_bit(
    samples: np.ndarray, grey_range: Range | None = None, note: Note = lambda _: None
) -> np.ndarray:
    """Samples of more than 8 bits stretched to uint8, of the same shape.

    Sensors of 10, 12 or 14 bits use a small part of 16, thermal ones a small part of that: so the
    percentiles 0.5 and 99.5 of the picture's samples, all channels together, become 0 and 255, or
    the two numbers of `grey_range`; linear between, rounded, cut off beyond. Where the percentiles
    are the same, least and largest stand for them; a picture all alike becomes 0, as does NaN.

    Raises:
        ImageError: no sample is a finite number.
    """
    finite = samples[np.isfinite(samples)] if samples.dtype.kind == "f" else samples
    if not finite.size:
        raise ImageError("image holds no finite number: check the camera driver")
    low, high = map(float, grey_range or np.percentile(finite, PERCENTILES))
    if low >= high:
        low, high = float(finite.min()), float(finite.max())
    note(
        f"more than 8 bits: {low:g} to {high:g} become 0 to 255 (grey_range)"
        if grey_range
        else "more than 8 bits: the percentiles {:g} and {:g} of each frame become 0 and 255 "
        "(grey_range fixes the range)".format(*PERCENTILES)
    )
    table = samples.dtype == np.uint16  # of all values: faster than to scale each sample
    values = np.arange(65536) if table else samples.astype(np.float64)
    with np.errstate(all="ignore"):
        scaled = (values - low) * (255.0 / (high - low) if high > low else 0.0)
        eight = np.rint(np.clip(np.nan_to_num(scaled, nan=0.0), 0.0, 255.0)).astype(np.uint8)
    return np.asarray(eight[samples] if table else eight)


def _bound(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(
            f"compressed image is {width}x{height}, over the limit of {max_pixels} pixels: "
            "scale it down"
        )


def _tiff_orientation(data: bytes) -> tuple[bytes, int]:
    """A TIFF told to be upright, and how it is: Pillow and OpenCV turn some TIFFs, of no option."""
    if data[:2] in (b"II", b"MM"):
        for orientation in range(2, 9):
            upright, turned = (
                struct.pack("<HHIH" if data[:1] == b"I" else ">HHIH", 274, 3, 1, number)
                for number in (1, orientation)
            )
            if turned in data:
                return data.replace(turned, upright), orientation
    return data, 1


def _orientation(picture: PilImage.Image) -> int:
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged tag; the pixels are good
        return 1


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Upright pixels of those recorded, by Exif's table of orientations."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _samples(picture: PilImage.Image, data: bytes, note: Note) -> np.ndarray:
    """Pixels of an opened picture as they lie in its file: grey (H, W) or RGB (H, W, 3)."""
    mode = picture.mode
    if picture.format == "JPEG" and mode in ("L", "RGB"):
        return _decode_jpeg(data, note)
    if mode.startswith("I") or mode == "F":
        array = np.array(picture)
        return array.astype(np.uint16) if mode.startswith("I;16") else array
    # Of deep colours Pillow gives the upper 8 bits only.
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        bits = max(np.atleast_1d(picture.tag_v2.get(_BITS_PER_SAMPLE, 1)))
    elif isinstance(picture, PpmImagePlugin.PpmImageFile):
        codec, _, _, options = picture.tile[0]
        bits = int(options[1]).bit_length() if codec == "ppm" and options else 8
    else:
        bits = data[24] if picture.format == "PNG" else 8
    if bits > 8:
        return _opencv_samples(data)
    return np.array(picture.convert("L" if mode in ("1", "L", "LA") else "RGB"))


def _beyond_pillow(data: bytes, max_pixels: int) -> bool:
    """Whether it is a TIFF of floats that Pillow does not open: colours, or 64 bits."""
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return False
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        floats = _FLOAT in tags.get(_SAMPLE_FORMAT, ()) and tags[_BITS_PER_SAMPLE] != (32,)
        width, height = int(tags[256]), int(tags[257])
    except Exception:  # damaged: Pillow says so
        return False
    if floats:
        _bound(width, height, max_pixels)
    return floats


def _opencv_samples(data: bytes) -> np.ndarray:
    """Pixels of any depth, decoded by OpenCV: (H, W) or RGB (H, W, 3)."""
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise ValueError("its data cannot be decoded")
    return array if array.ndim == 2 else np.ascontiguousarray(array[..., 2::-1])


def _decode_jpeg(data: bytes, note: Note) -> np.ndarray:
    """Decode a JPEG with OpenCV, several times as fast as Pillow and equal to the bit.

    OpenCV fills what a truncated file lacks with grey and says nothing, so the end is looked for
    first. Coded data never holds an end marker by chance: a 0xFF in it is always followed by 0.
    Without the marker, the pixels are all there if what follows the data changes none of them.
    """
    if data.find(_END, _start_of_scan(data)) >= 0:
        return _opencv_samples(data)
    data = data.rstrip(b"\xff")  # half a marker
    found, *others = (
        np.array(PilImage.open(io.BytesIO(data + fill + _END), formats=("JPEG",)))
        for fill in _FILLS
    )
    if not all(np.array_equal(found, other) for other in others):
        raise ValueError("JPEG data ends early")
    note("JPEG without an end marker, of which no pixel is missing: check the publisher")
    return found


def _start_of_scan(raw: bytes) -> int:
    """Position of a JPEG's first start-of-scan marker, past headers and embedded thumbnails."""
    position = 2
    while position + 4 <= len(raw) and raw[position] == 0xFF:
        marker = raw[position + 1]
        if marker == 0xDA:
            return position
        if marker == 0xFF:  # fill byte before a marker
            position += 1
            continue
        position += 2 + int.from_bytes(raw[position + 2 : position + 4], "big")
    raise ValueError("JPEG data ends before its first scan")


def quoted(value: Any) -> str:
    """One short line of a value from outside, for a message to the user."""
    return repr(one_line(value, _MAX_SHOWN))
