"""Picture files: finding, reading and decoding them safely."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import ExifTags, ImageOps, UnidentifiedImageError
from PIL import Image as PilImage

from anomaly_detector_ros.errors import UserError, one_line

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
MAX_PIXELS = 80_000_000
"""Compressed images of more pixels are refused before they are decoded."""

_MAX_SHOWN = 60


class ImageError(UserError):
    """A file or message without a usable picture: unknown encoding, wrong size, corrupt data."""


def find_images(path: Path) -> list[Path]:
    """All picture files under a folder, in a fixed order.

    Raises:
        UserError: the folder does not exist or holds no picture.
    """
    if not path.is_dir():
        raise UserError(f"'{path}' is not a folder: give a folder of images")
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise UserError(f"no images in '{path}': expected {', '.join(IMAGE_SUFFIXES)} files")
    return found


def read_rgb(file: Path) -> np.ndarray:
    """A picture file, upright: uint8 RGB (H, W, 3).

    Raises:
        ImageError: missing, truncated, corrupt, or no picture.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot read '{file}' ({error.strerror}): give a picture file") from error
    try:
        array = decode_image(data, upright=True)
    except ImageError as error:
        raise ImageError(f"cannot read '{file}': {error}") from error
    return array if array.ndim == 3 else cv2.cvtColor(array, cv2.COLOR_GRAY2RGB)


def decode_image(data: Any, max_pixels: int = MAX_PIXELS, *, upright: bool = False) -> np.ndarray:
    """Decode a picture file held in memory: uint8 RGB (H, W, 3), or uint8 (H, W) for a grey one.

    With `upright` it is turned and mirrored as the camera noted in the file.

    A JPEG that ends early is refused; one whose coded data is altered inside often still decodes,
    as JPEG carries no check sum.

    Raises:
        ImageError: data that are empty, truncated, corrupt or no picture, or too many pixels.
    """
    data = np.frombuffer(data, np.uint8)
    if data.size == 0:
        raise ImageError("compressed image holds no data: check the publisher")
    formats = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM")
    try:
        with PilImage.open(io.BytesIO(data), formats=formats) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise ImageError(
                    f"compressed image is {width}x{height}, over the limit of {max_pixels} pixels: "
                    "scale it down"
                )
            if upright and _orientation(picture) != 1:
                return _pillow_array(ImageOps.exif_transpose(picture))
            if picture.format == "JPEG" and picture.mode in ("L", "RGB"):
                return _decode_jpeg(data)
            return _pillow_array(picture)
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


def _orientation(picture: PilImage.Image) -> int:
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged tag; the pixels are good
        return 1


def to_8_bit(pixels: np.ndarray) -> np.ndarray:
    """16 bit to 8 bit as cv_bridge scales: by 255 / 65535, rounded."""
    return cv2.convertScaleAbs(pixels, alpha=255.0 / 65535.0)


def _decode_jpeg(data: np.ndarray) -> np.ndarray:
    """Decode a JPEG with OpenCV, several times as fast as Pillow and equal to the bit.

    OpenCV fills what a truncated file lacks with grey and says nothing, so the end is looked for
    first. Coded data never holds an end marker by chance: a 0xFF in it is always followed by 0.
    """
    raw = data.tobytes()
    if raw.find(b"\xff\xd9", _start_of_scan(raw)) < 0:
        raise ValueError("JPEG data ends early")
    array = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if array is None:
        raise ValueError("JPEG data cannot be decoded")
    return array if array.ndim == 2 else cv2.cvtColor(array, cv2.COLOR_BGR2RGB)


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


def _pillow_array(picture: PilImage.Image) -> np.ndarray:
    """Decoded pixels of an opened picture: uint8 (H, W) for grey, (H, W, 3) RGB otherwise."""
    if picture.mode.startswith("I;16") or picture.mode == "I":
        pixels = np.asarray(picture).astype(np.int64)
        return to_8_bit(np.clip(pixels, 0, 65535).astype(np.uint16))
    if picture.mode in ("1", "L", "LA"):
        return np.array(picture.convert("L"))
    return np.array(picture.convert("RGB"))


def quoted(value: Any) -> str:
    """One short line of a value from outside, for a message to the user."""
    return repr(one_line(value, _MAX_SHOWN))
