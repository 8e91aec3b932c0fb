"""Camera messages to RGB arrays and arrays to image messages, without rclpy.

The functions read a message's fields only, so they take messages of rclpy and of rosbags alike.
The numbers are those of cv_bridge: its own `cvtColor2` does the colour conversion where it imports,
else OpenCV with the conversion codes that cv_bridge uses.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np

from anomaly_detector_ros.imaging.images import (
    MAX_PIXELS,
    ImageError,
    decode_image,
    quoted,
    to_8_bit,
)


class Encoding(NamedTuple):
    """How the pixels of an encoding lie in memory, and what makes RGB of them."""

    channels: int
    bytes_per_channel: int
    to_rgb: int | None  # OpenCV's conversion code; None: RGB already


# OpenCV names a Bayer pattern by the second row's second and third pixel, ROS by the first row's
# first two: BayerBG is rggb.
_ENCODINGS: dict[str, Encoding] = {
    "rgb8": Encoding(3, 1, None),
    "bgr8": Encoding(3, 1, cv2.COLOR_BGR2RGB),
    "rgba8": Encoding(4, 1, cv2.COLOR_RGBA2RGB),
    "bgra8": Encoding(4, 1, cv2.COLOR_BGRA2RGB),
    "mono8": Encoding(1, 1, cv2.COLOR_GRAY2RGB),
    "mono16": Encoding(1, 2, cv2.COLOR_GRAY2RGB),
    "yuv422": Encoding(2, 1, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": Encoding(2, 1, cv2.COLOR_YUV2RGB_YUY2),
    "bayer_rggb8": Encoding(1, 1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": Encoding(1, 1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": Encoding(1, 1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": Encoding(1, 1, cv2.COLOR_BayerGB2RGB),
}

# Newer releases of sensor_msgs rename the YUV encodings; drivers that know nothing of colour send
# OpenCV's type names, whose order of channels is BGR.
_ALIASES = {
    "uyvy": "yuv422",
    "yuyv": "yuv422_yuy2",
    "8UC1": "mono8",
    "8UC3": "bgr8",
    "8UC4": "bgra8",
}

ENCODINGS: tuple[str, ...] = (*_ENCODINGS, *_ALIASES)
"""Every value of `sensor_msgs/Image.encoding` that :func:`image_to_rgb` accepts."""


def image_to_rgb(msg: Any) -> np.ndarray:
    """RGB picture of a `sensor_msgs/Image`: uint8 (H, W, 3).

    For rgb8 without row padding the result shares the message's memory and may be read-only.
    mono16 becomes 8 bit as in cv_bridge, scaled by 255 / 65535 and rounded.

    Raises:
        ImageError: unknown encoding, zero size, `step` too small, data too short, more than
            `images.MAX_PIXELS` pixels.
    """
    name = _ALIASES.get(msg.encoding, msg.encoding)
    encoding = _ENCODINGS.get(name)
    if encoding is None:
        raise ImageError(
            f"image encoding {quoted(msg.encoding)} is not supported: use one of "
            f"{', '.join(_ENCODINGS)}"
        )
    pixels = _unpack(msg, encoding)
    if encoding.bytes_per_channel == 2:
        pixels = to_8_bit(pixels)
        name = "mono8"
    return _colour(pixels, name)


def compressed_to_rgb(msg: Any, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """RGB picture of a `sensor_msgs/CompressedImage`: uint8 (H, W, 3).

    JPEG, PNG, WebP, TIFF or BMP, which the data itself tells; `format` tells about the colours only
    ("rgb8; jpeg compressed bgr8"). Orientation tags are ignored: the camera's calibration is that
    of the sensor.

    Raises:
        ImageError: data that are empty, truncated, corrupt or no picture; more than
            `max_pixels` pixels, which is found before decoding; a depth image.
    """
    described, _, compression = str(msg.format).partition(";")
    if "compresseddepth" in str(msg.format).lower():
        raise ImageError(
            f"compressed format {quoted(msg.format)} is a depth image: give a colour camera's topic"
        )
    array = decode_image(_buffer(msg.data), max_pixels)
    if array.ndim == 2:
        # image_transport compresses a Bayer mosaic as it is, as a grey picture.
        mosaic = described.strip() if described.strip().startswith("bayer_") else "mono8"
        return _colour(array, mosaic if mosaic in _ENCODINGS else "mono8")
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


def info_fits(info: Any, size: tuple[int, ...]) -> bool:
    """Whether a `sensor_msgs/CameraInfo` is of an image of this (height, width).

    With binning or a region of interest the image is smaller than the calibrated sensor: any fits.
    """
    whole = max(info.binning_x, info.binning_y) <= 1 and not (info.roi.width or info.roi.height)
    return not whole or (info.height, info.width) == size


def _buffer(data: Any) -> np.ndarray:
    """Bytes of a message's data field, without a copy where it offers its buffer."""
    if isinstance(data, (list, tuple)):
        return np.asarray(data, np.uint8)
    return np.frombuffer(data, np.uint8)


def _unpack(msg: Any, encoding: Encoding) -> np.ndarray:
    """The message's pixels without padding, in native byte order: (H, W) or (H, W, C)."""
    height, width, step = int(msg.height), int(msg.width), int(msg.step)
    if height <= 0 or width <= 0:
        raise ImageError(f"image is {width}x{height}, without pixels: check the camera driver")
    row = width * encoding.channels * encoding.bytes_per_channel
    if step < row:
        raise ImageError(
            f"image step is {step} bytes but a row of {width} pixels in {msg.encoding} takes "
            f"{row}: check the camera driver"
        )
    data = _buffer(msg.data)
    needed = (height - 1) * step + row  # some drivers leave out the last row's padding
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
        rows = data[:needed].reshape(height, row)
    else:
        padded = np.lib.stride_tricks.as_strided(data, (height, row), (step, 1), writeable=False)
        rows = np.ascontiguousarray(padded)
    if encoding.bytes_per_channel == 2:
        order = ">" if msg.is_bigendian else "<"
        rows = rows.view(f"{order}u2").astype(np.uint16, copy=False)
    shape = (height, width) if encoding.channels == 1 else (height, width, encoding.channels)
    return rows.reshape(shape)


def _colour(pixels: np.ndarray, name: str) -> np.ndarray:
    """RGB of unpacked 8-bit pixels in the encoding `name`."""
    code = _ENCODINGS[name].to_rgb
    if code is None:
        return pixels
    try:
        bridge = _cv_bridge_colour()
        if bridge is not None:
            return bridge(pixels, name, "rgb8")
        return cv2.cvtColor(pixels, code)
    except (cv2.error, RuntimeError) as error:
        height, width = pixels.shape[:2]
        raise ImageError(
            f"image of {width}x{height} pixels cannot be converted from {name}: {quoted(error)}"
        ) from error


@functools.lru_cache(maxsize=1)
def _cv_bridge_colour() -> Callable[[np.ndarray, str, str], np.ndarray] | None:
    """cv_bridge's colour conversion, or None where it does not import and work.

    A cv_bridge built against NumPy 1 fails in several ways under NumPy 2, some of them only when
    called, so it is tried on one pixel. Its `imgmsg_to_cv2` is not used: it mistakes row padding
    that is no multiple of a pixel, and byte-swaps with an API that NumPy 2 removed.
    """
    try:
        from cv_bridge.boost.cv_bridge_boost import cvtColor2

        convert: Callable[[np.ndarray, str, str], np.ndarray] = cvtColor2
        probe = np.array([[[1, 2, 3]]], np.uint8)
        if np.array_equal(convert(probe, "bgr8", "rgb8"), probe[..., ::-1]):
            return convert
    except (ImportError, AttributeError, RuntimeError, TypeError, SystemError):
        pass
    return None
