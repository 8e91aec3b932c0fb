"""Camera messages to RGB arrays and arrays to image messages, without rclpy.

The functions read a message's fields only, so they take messages of rclpy and of rosbags alike.
Colours are those of cv_bridge: OpenCV's, with the conversion codes that cv_bridge uses.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import cv2
import numpy as np

from anomaly_detector_ros.imaging.images import (
    MAX_PIXELS,
    ImageError,
    Note,
    Range,
    decode_image,
    quoted,
    to_8_bit,
)


class Encoding(NamedTuple):
    """How the samples of an encoding lie in memory, and what makes RGB of them.

    Attributes:
        channels: samples of a pixel in a row.
        to_rgb: OpenCV's conversion code; None: RGB already.
        dtype: of a sample.
        chroma: planes behind that of Y, each of a quarter of the pixels, or one of pairs; 0: none.
        full_chroma: they have as many pixels as that of Y.
    """

    channels: int
    to_rgb: int | None
    dtype: str = "u1"
    chroma: int = 0
    full_chroma: bool = False


# OpenCV names a Bayer pattern by the second row's second and third pixel, ROS by the first row's
# first two: BayerBG is rggb.
_BAYER = {
    "rggb": cv2.COLOR_BayerBG2RGB,
    "bggr": cv2.COLOR_BayerRG2RGB,
    "gbrg": cv2.COLOR_BayerGR2RGB,
    "grbg": cv2.COLOR_BayerGB2RGB,
}
_ENCODINGS: dict[str, Encoding] = {
    "rgb8": Encoding(3, None),
    "bgr8": Encoding(3, cv2.COLOR_BGR2RGB),
    "rgba8": Encoding(4, cv2.COLOR_RGBA2RGB),
    "bgra8": Encoding(4, cv2.COLOR_BGRA2RGB),
    "mono8": Encoding(1, cv2.COLOR_GRAY2RGB),
    "rgb16": Encoding(3, None, "u2"),
    "bgr16": Encoding(3, cv2.COLOR_BGR2RGB, "u2"),
    "rgba16": Encoding(4, cv2.COLOR_RGBA2RGB, "u2"),
    "bgra16": Encoding(4, cv2.COLOR_BGRA2RGB, "u2"),
    "mono16": Encoding(1, cv2.COLOR_GRAY2RGB, "u2"),
    "32FC1": Encoding(1, cv2.COLOR_GRAY2RGB, "f4"),
    "yuv422": Encoding(2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": Encoding(2, cv2.COLOR_YUV2RGB_YUY2),
    "nv12": Encoding(1, cv2.COLOR_YUV2RGB_NV12, chroma=1),
    "nv21": Encoding(1, cv2.COLOR_YUV2RGB_NV21, chroma=1),
    "nv24": Encoding(1, cv2.COLOR_YUV2RGB_NV12, chroma=1, full_chroma=True),
    "i420": Encoding(1, cv2.COLOR_YUV2RGB_I420, chroma=2),
    **{f"bayer_{pattern}8": Encoding(1, code) for pattern, code in _BAYER.items()},
    **{f"bayer_{pattern}16": Encoding(1, code, "u2") for pattern, code in _BAYER.items()},
}

# Newer releases of sensor_msgs rename the YUV encodings, and some drivers take the names of V4L2 or
# FFmpeg; those that know nothing of colour send OpenCV's type names, whose channels are BGR.
_ALIASES = {
    "uyvy": "yuv422",
    "yuyv": "yuv422_yuy2",
    "yuy2": "yuv422_yuy2",
    "yuv420": "i420",
    "yuv420p": "i420",
    "yu12": "i420",
    "grey": "mono8",
    "y8": "mono8",
    "y16": "mono16",
    "8UC1": "mono8",
    "8UC2": "yuv422_yuy2",  # of two samples a pixel there is no other
    "8UC3": "bgr8",
    "8UC4": "bgra8",
    "16UC1": "mono16",
    "16UC3": "bgr16",
    "16UC4": "bgra16",
}

ENCODINGS: tuple[str, ...] = (*_ENCODINGS, *_ALIASES)
"""Every value of `sensor_msgs/Image.encoding` that :func:`image_to_rgb` accepts, in any case."""

_BY_NAME = {name.lower(): _ENCODINGS[_ALIASES.get(name, name)] for name in ENCODINGS}


def image_to_rgb(
    msg: Any, *, grey_range: Range | None = None, note: Note = lambda _: None
) -> np.ndarray:
    """RGB picture of a `sensor_msgs/Image`: uint8 (H, W, 3).

    For rgb8 without row padding the result shares the message's memory and may be read-only.
    More than 8 bits are stretched; see `images.to_8_bit` for `grey_range` and `note`.

    Raises:
        ImageError: unknown encoding, zero size, `step` too small, data too short, more than
            `images.MAX_PIXELS` pixels, no finite number.
    """
    encoding = _BY_NAME.get(msg.encoding.lower())
    if encoding is None:
        raise ImageError(
            f"image encoding {quoted(msg.encoding)} is not supported: use one of "
            f"{', '.join(name for name in _ENCODINGS if not name.startswith('bayer'))}, bayer_*"
        )
    samples = _unpack(msg, encoding)
    if samples.dtype != np.uint8:
        samples = to_8_bit(samples, grey_range, note)
    rgb = _colour(samples, msg.encoding)
    return np.ascontiguousarray(rgb[::2, ::2]) if encoding.full_chroma else rgb


def compressed_to_rgb(
    msg: Any,
    max_pixels: int = MAX_PIXELS,
    *,
    grey_range: Range | None = None,
    note: Note = lambda _: None,
) -> np.ndarray:
    """RGB picture of a `sensor_msgs/CompressedImage`: uint8 (H, W, 3).

    JPEG, PNG, WebP, TIFF or BMP, which the data itself tells; `format` tells about the colours only
    ("rgb8; jpeg compressed bgr8"). Orientation tags are ignored: the camera's calibration is that
    of the sensor. See `images.decode_image` for `grey_range` and `note`.

    Raises:
        ImageError: data that are empty, truncated, corrupt or no picture; more than
            `max_pixels` pixels, which is found before decoding; a depth image.
    """
    described, _, compression = str(msg.format).partition(";")
    if "compresseddepth" in str(msg.format).lower():
        raise ImageError(
            f"compressed format {quoted(msg.format)} is a depth image: give a colour camera's topic"
        )
    array = decode_image(_buffer(msg.data), max_pixels, grey_range=grey_range, note=note)
    if array.ndim == 2:
        # image_transport compresses a Bayer mosaic as it is, as a grey picture.
        mosaic = described.strip()
        known = mosaic.startswith("bayer_") and mosaic in _ENCODINGS
        return _colour(array, mosaic if known else "mono8")
    # "compressed rgb8": the encoder was given RGB and took it for BGR, so the colours are swapped.
    if "compressed rgb" in compression:
        return np.ascontiguousarray(array[..., ::-1])
    return array


def image_fields(array: np.ndarray, encoding: str) -> dict[str, Any]:
    """Fields of a `sensor_msgs/Image` that carries `array`, but for the header; `data` is bytes.

    Args:
        array: (H, W) or, for rgb8, (H, W, 3), of the encoding's dtype.
        encoding: "mono8" (uint8), "rgb8" (uint8), "32FC1" (float32) or "16UC1" (uint16).

    Raises:
        ValueError: the encoding is none of these, or dtype or shape do not fit it.
    """
    dtypes: dict[str, tuple[type, int]] = {
        "mono8": (np.uint8, 1),
        "rgb8": (np.uint8, 3),
        "32FC1": (np.float32, 1),
        "16UC1": (np.uint16, 1),
    }
    if encoding not in dtypes:
        raise ValueError(f"encoding {encoding!r} is none of {', '.join(dtypes)}")
    dtype, channels = dtypes[encoding]
    shape = array.shape[:2] if channels == 1 else (*array.shape[:2], channels)
    if array.dtype != dtype or array.shape != shape or array.ndim < 2:
        raise ValueError(f"{encoding} cannot hold {array.dtype} of shape {array.shape}")
    height, width = array.shape[:2]
    return {
        "height": height,
        "width": width,
        "encoding": encoding,
        "is_bigendian": int(sys.byteorder == "big"),
        "step": width * channels * array.dtype.itemsize,
        "data": array.tobytes(),
    }


def _buffer(data: Any) -> np.ndarray:
    """Bytes of a message's data field, without a copy where it offers its buffer."""
    if isinstance(data, (list, tuple)):
        return np.asarray(data, np.uint8)
    return np.frombuffer(data, np.uint8)


def _unpack(msg: Any, encoding: Encoding) -> np.ndarray:
    """The message's samples without padding, in native byte order: (H, W) or (H, W, C).

    With planes of chroma it is (H * 3 / 2, W), one plane after the other, as OpenCV takes them;
    with full chroma, which OpenCV does not take, that of the image with each pixel four times.
    """
    height, width, step = int(msg.height), int(msg.width), int(msg.step)
    if height <= 0 or width <= 0:
        raise ImageError(f"image is {width}x{height}, without pixels: check the camera driver")
    dtype = np.dtype(encoding.dtype).newbyteorder(">" if msg.is_bigendian else "<")
    row = width * encoding.channels * dtype.itemsize
    if step < row:
        raise ImageError(
            f"image step is {step} bytes but a row of {width} pixels in {msg.encoding} takes "
            f"{row}: check the camera driver"
        )
    data = _buffer(msg.data)
    # Offset, rows, bytes of a row and stride of each plane.
    planes = [(0, height, row, step)]
    if encoding.chroma:
        if not encoding.full_chroma and (height % 2 or width % 2):
            raise ImageError(
                f"image of {width}x{height} pixels cannot be {msg.encoding}, which halves both "
                "sides: check the camera driver"
            )
        rows = height if encoding.full_chroma else height // 2
        each = 2 if encoding.full_chroma else 1  # bytes of a row, for one of Y
        if data.size == height * width + rows * width * each:
            step = width  # some count the chroma's bytes into the step
        narrow = step * each // encoding.chroma
        planes = [(0, height, row, step)] + [
            (height * step + plane * rows * narrow, rows, row * each // encoding.chroma, narrow)
            for plane in range(encoding.chroma)
        ]
    offset, rows, length, stride = planes[-1]
    needed = offset + (rows - 1) * stride + length  # some leave out the last row's padding
    if data.size < needed:
        raise ImageError(
            f"image data is truncated: {data.size} bytes of {needed} for {width}x{height} "
            f"{msg.encoding}: check the camera driver"
        )
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"image is {width}x{height}, over the limit of {MAX_PIXELS} pixels: scale it down"
        )
    if step == row:
        data = data[:needed]
    else:
        data = np.concatenate([_without_padding(data[first:], *rest) for first, *rest in planes])
    samples = data.view(dtype).astype(dtype.newbyteorder("="), copy=False)
    if encoding.full_chroma:
        luma = samples[: height * width].reshape(height, width)
        pairs = samples[height * width :].reshape(height, 2 * width)
        return np.concatenate([luma.repeat(2, 0).repeat(2, 1), pairs])
    if encoding.chroma:
        return samples.reshape(height * 3 // 2, width)
    shape = (height, width) if encoding.channels == 1 else (height, width, encoding.channels)
    return samples.reshape(shape)


def _without_padding(data: np.ndarray, rows: int, length: int, stride: int) -> np.ndarray:
    padded = np.lib.stride_tricks.as_strided(data, (rows, length), (stride, 1), writeable=False)
    return padded.ravel()


def _colour(pixels: np.ndarray, name: str) -> np.ndarray:
    """RGB of unpacked samples of 8 bits in the encoding `name`."""
    code = _BY_NAME[name.lower()].to_rgb
    if code is None:
        return pixels
    height, width = pixels.shape[:2]
    if code in _BAYER.values() and min(height, width) < 3:  # OpenCV makes those black
        raise ImageError(f"image of {width}x{height} pixels is too small for {name}: enlarge it")
    try:
        return cv2.cvtColor(pixels, code)
    except cv2.error as error:
        raise ImageError(
            f"image of {width}x{height} pixels cannot be converted from {name}: {quoted(error)}"
        ) from error
