"""Mutated camera messages through the conversions that the node and the bag tool use.

python test/fuzz/fuzz_messages.py --count 10000 --seed 0
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image as PilImage

sys.path.extend(str(Path(__file__).parents[up]) for up in (0, 1))

from harness import Case, main
from mutations import mutate

from anomaly_detector_ros.imaging.images import MAX_PIXELS
from anomaly_detector_ros.imaging.messages import ENCODINGS, compressed_to_rgb, image_to_rgb
from anomaly_detector_ros.mapping.camera_model import CameraModel, fitted
from anomaly_detector_ros.sources.recordings import COMPRESSED, IMAGE, deserialize, typestore

CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
HEIGHT, WIDTH = 24, 32
_ODD_NUMBERS = (0, 1, 2, 3, 31, 33, 24, 60000, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
_ODD_FLOATS = (math.nan, math.inf, -math.inf, 0.0, -1.0, 1e-300, 1e300)
_ODD_TEXTS = (
    "", "16UC1", "32FC1", "rgb16", "RGB8", "mono8 ", "bayer_rggb16", "8UC2", "é" * 40, "\n" * 30,
    "x" * 5000, "\0", "rgb8\0", "{}", "%s%n",
)  # fmt: skip
_FORMATS = (
    "jpeg", "png", "rgb8; jpeg compressed bgr8", "rgb8; png compressed rgb8",
    "16UC1; compressedDepth", "bayer_rggb8; png compressed ", "bayer_xx; jpeg", ";;;",
    "compressed rgb", *_ODD_TEXTS,
)  # fmt: skip
_SUFFIXES = (".jpg", ".png", ".webp", ".tiff", ".bmp", ".ppm")

try:
    from rclpy.serialization import deserialize_message
    from sensor_msgs.msg import CameraInfo, CompressedImage, Image

    _CLASSES: dict[str, Any] = {IMAGE: Image, COMPRESSED: CompressedImage, CAMERA_INFO: CameraInfo}
except ImportError:  # without ROS the bag tool's way alone is tried
    _CLASSES = {}


def make_case(seed: int) -> Case:
    """Case by number: its kind of message goes round, the rest is drawn."""
    kinds: tuple[Callable[[np.random.Generator], bool], ...] = (
        image_case,
        compressed_case,
        camera_info_case,
    )

    def case(number: int) -> bool:
        rng = np.random.default_rng([seed, number])
        return kinds[number % len(kinds)](rng)

    return case


def image_case(rng: np.random.Generator) -> bool:
    """An Image with odd fields or bytes; what comes out has the size that the message states."""
    fields = _image_fields(rng)
    if rng.random() < 0.6:
        _spoil_image(fields, rng)
    message = _through_bytes(fields, IMAGE, rng)
    found = image_to_rgb(message)
    assert found.dtype == np.uint8
    assert found.shape == (message.height, message.width, 3)
    assert found.size <= 3 * MAX_PIXELS
    return int(found[-1, -1, -1]) >= 0  # the memory behind it is there


def compressed_case(rng: np.random.Generator) -> bool:
    """A CompressedImage of any format with odd data; the picture has the size that it states."""
    shape = (HEIGHT, WIDTH) if rng.random() < 0.3 else (HEIGHT, WIDTH, 3)
    picture = rng.integers(0, 256, shape, np.uint8)
    if rng.random() < 0.1:
        picture = picture.astype(np.uint16) * 257
    deep = picture.dtype != np.uint8
    suffix = ".png" if deep else str(rng.choice(_SUFFIXES))
    suffix = ".pgm" if suffix == ".ppm" and picture.ndim == 2 else suffix
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, int(rng.integers(2))] if suffix == ".jpg" else []
    data = cv2.imencode(suffix, picture, options)[1].tobytes()
    if rng.random() < 0.8:
        data = mutate(data, rng)
    if rng.random() < 0.1:
        data = _bomb(rng)
    fields = {"header": _header(), "format": str(rng.choice(_FORMATS)), "data": _bytes(data)}
    message = _through_bytes(fields, COMPRESSED, rng, spoil=0.3)
    found = compressed_to_rgb(message)
    assert found.dtype == np.uint8
    assert found.ndim == 3
    assert found.shape[2] == 3
    assert 0 < found.size <= 3 * MAX_PIXELS
    with PilImage.open(io.BytesIO(bytes(message.data))) as header:
        assert found.shape[:2] == header.size[::-1]
    return int(found[-1, -1, -1]) >= 0


def camera_info_case(rng: np.random.Generator) -> bool:
    """A CameraInfo with odd numbers; a model made of it has finite rays of the image's size."""
    store = typestore()
    model = str(rng.choice(["plumb_bob", "rational_polynomial", "equidistant", "", "fisheye"]))
    count = int(rng.choice([0, 4, 5, 8, 12, 14]))
    fields = {
        "header": _header(), "height": HEIGHT, "width": WIDTH, "distortion_model": model,
        "d": rng.normal(0, 0.1, count), "k": np.array([30.0, 0, 16, 0, 30, 12, 0, 0, 1]),
        "r": np.eye(3).ravel(), "p": np.array([30.0, 0, 16, 0, 0, 30, 12, 0, 0, 0, 1, 0]),
        "binning_x": int(rng.integers(3)), "binning_y": int(rng.integers(3)),
        "roi": store.types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False),
    }  # fmt: skip
    for name in ("d", "k", "r", "p"):
        if len(fields[name]) and rng.random() < 0.3:
            fields[name][int(rng.integers(len(fields[name])))] = rng.choice(_ODD_FLOATS)
    for name in ("height", "width", "binning_x", "binning_y"):
        if rng.random() < 0.1:
            fields[name] = int(rng.choice(_ODD_NUMBERS))
    if rng.random() < 0.2:
        region = [int(rng.choice(_ODD_NUMBERS)) for _ in range(4)]
        fields["roi"] = store.types["sensor_msgs/msg/RegionOfInterest"](*region, True)
    message = _through_bytes(fields, CAMERA_INFO, rng, spoil=0.3)
    size = (HEIGHT, WIDTH)
    assert set(fitted(message, size)) <= {"height", "width", "k", "p"}
    rays = CameraModel.from_info(message, size).rays
    assert rays.shape[:2] == size
    assert not np.isinf(rays).any()
    return True


def _image_fields(rng: np.random.Generator) -> dict[str, Any]:
    encoding = str(rng.choice(ENCODINGS))
    wide = {"rgb8": 3, "bgr8": 3, "8UC3": 3, "rgba8": 4, "bgra8": 4, "8UC4": 4, "32FC1": 4}
    pairs = ("yuv422", "yuv422_yuy2", "uyvy", "yuyv", "yuy2")
    deep = 6 if encoding in ("rgb16", "bgr16", "16UC3") else 2
    double = encoding in pairs or "16" in encoding
    step = WIDTH * (deep if double else wide.get(encoding, 1)) + int(rng.integers(4))
    planar = encoding in ("nv12", "nv21", "i420", "yuv420", "yuv420p")
    return {
        "header": _header(), "height": HEIGHT, "width": WIDTH, "encoding": encoding,
        "is_bigendian": int(rng.integers(2)), "step": step,
        "data": rng.integers(0, 256, HEIGHT * step * (3 if planar else 2) // 2, np.uint8),
    }  # fmt: skip


def _spoil_image(fields: dict[str, Any], rng: np.random.Generator) -> None:
    for name in rng.choice(["height", "width", "step", "encoding", "data", "is_bigendian"], 2):
        if name == "encoding":
            fields[name] = str(rng.choice([*_ODD_TEXTS, *ENCODINGS]))
        elif name == "data":
            fields[name] = fields[name][: int(rng.integers(len(fields[name]) + 1))]
        elif name == "is_bigendian":
            fields[name] = int(rng.integers(256))
        else:
            small = int(rng.integers(0, 40))
            fields[name] = small if rng.random() < 0.5 else int(rng.choice(_ODD_NUMBERS))


def _through_bytes(
    fields: dict[str, Any], msgtype: str, rng: np.random.Generator, spoil: float = 0.5
) -> Any:
    """The message as a node or the bag tool reads it from its, perhaps spoilt, bytes."""
    store = typestore()
    data = bytes(store.serialize_cdr(store.types[msgtype](**fields), msgtype))
    if rng.random() < spoil:
        data = mutate(data, rng)
    if msgtype in _CLASSES and rng.random() < 0.5:
        return _as_the_node_reads(data, msgtype)
    return deserialize(data, msgtype)


def _as_the_node_reads(data: bytes, msgtype: str) -> Any:
    from anomaly_detector_ros.imaging.images import ImageError

    try:
        return deserialize_message(data, _CLASSES[msgtype])
    except Exception as error:  # the node refuses a message whatever its reader raises
        raise ImageError("message is truncated or corrupt: it cannot be read") from error


def _bomb(rng: np.random.Generator) -> bytes:
    """A small PNG, BMP or PPM that promises very many pixels."""
    side = int(rng.choice([9000, 20000, 60000, 2**31 - 1]))
    if rng.random() < 0.3:
        return f"P6 {side} {side} 255\n".encode() + bytes(100)
    import zlib

    png = bytearray(cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes())
    png[16:24] = side.to_bytes(4, "big") * 2
    png[29:33] = zlib.crc32(bytes(png[12:29])).to_bytes(4, "big")
    return bytes(png)


def _bytes(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def _header() -> Any:
    types = typestore().types
    stamp = types["builtin_interfaces/msg/Time"](sec=1, nanosec=2)
    return types["std_msgs/msg/Header"](stamp=stamp, frame_id="camera")


if __name__ == "__main__":
    sys.exit(main("mutated messages", make_case, 10_000))
