"""The images that stand for one frame's detection; the node and the bag tool publish the same.

No rclpy: arrays in, arrays out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from anomaly_detector_ros.detection import Detection

CLASSES = {0: "nominal", 255: "anomaly"}
"""Values of the output ``mask`` and what they stand for."""
ANOMALY = 255

JPEG_QUALITY = 90
JPEG_FORMAT = "rgb8; jpeg compressed bgr8"
"""`sensor_msgs/CompressedImage.format` of :func:`encode_jpeg`, as image_transport writes it."""

_VISIBLE_FROM = 0.25
_OPACITY = 0.65
_OUTLINE = (255, 255, 255)
_OUTLINE_SHADOW = (150, 0, 0)


def confidence(heatmap: np.ndarray) -> np.ndarray:
    """A float heatmap in [0, 1] as uint8 0..255, rounded; NaN counts as 0."""
    return np.asarray(np.rint(np.clip(np.nan_to_num(heatmap), 0.0, 1.0) * 255.0), np.uint8)


def segments_16_bit(segments: np.ndarray) -> np.ndarray:
    """Segment ids int32 (H, W) as uint16, 0 for none.

    Ids beyond 65535 or below 0 do not fit: then the ids are numbered anew from 1, which keeps the
    segments apart; what is beyond the 65535th segment becomes 0.
    """
    if segments.size and (segments.max() > 65535 or segments.min() < 0):
        ids, inverse = np.unique(segments, return_inverse=True)
        numbers = np.zeros(len(ids), np.int64)
        positive = np.flatnonzero(ids > 0)
        numbers[positive] = np.arange(1, len(positive) + 1)
        numbers[numbers > 65535] = 0
        segments = numbers[inverse].reshape(segments.shape)
    return segments.astype(np.uint16)


def overlay(image: np.ndarray, detection: Detection) -> np.ndarray:
    """Heat colours over the picture where the heatmap is high, with the mask outlined.

    uint8 RGB (H, W, 3). Opacity grows with the value, so nominal ground stays as the camera saw it.
    """
    heat = confidence(_visible_heat(detection.heatmap, detection.calibrated))
    opacity = _opacity_table()[heat][..., None]
    colours = _colour_table()[heat].astype(np.float32)
    blended = image.astype(np.float32)
    blended += (colours - blended) * opacity
    result = np.rint(blended).astype(np.uint8)
    _draw_outline(result, detection.mask)
    return result


def heat_picture(heatmap: np.ndarray, *, calibrated: bool) -> np.ndarray:
    """A heatmap, float (H, W) in [0, 1], in colours of a perceptually even scale; uint8 RGB.

    Black is 0 and the brightest yellow 1. Once calibrated, equal steps are equal factors of the
    share of nominal pixels above: 0.9, 0.99, 0.999 and 0.9999 are a quarter of the scale apart.
    """
    heat = confidence(_visible_heat(heatmap, calibrated))
    return cv2.cvtColor(cv2.applyColorMap(heat, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)


def encode_jpeg(rgb: np.ndarray, quality: int = JPEG_QUALITY) -> bytes:
    """JPEG file of an RGB picture, uint8 (H, W, 3); quality 1 to 100."""
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    return _encode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])


def encode_png(array: np.ndarray) -> bytes:
    """PNG file of an RGB picture, uint8 (H, W, 3), or of one channel, uint8 or uint16 (H, W)."""
    if array.ndim == 3:
        array = cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
    return _encode(".png", array, [])


def _encode(suffix: str, array: np.ndarray, options: list[int]) -> bytes:
    done, data = cv2.imencode(suffix, array, options)
    if not done:
        raise ValueError(f"cannot encode {array.dtype} of shape {array.shape} as {suffix}")
    return data.tobytes()


def _visible_heat(heatmap: np.ndarray, calibrated: bool) -> np.ndarray:
    """What the colours show, (H, W) in [0, 1].

    Half of all nominal pixels are above 0.5 once calibrated, so then it is the order of magnitude
    of the share of nominal pixels above: 0.25 for a tenth, 1 for a ten-thousandth.
    """
    if not calibrated:
        return heatmap
    return np.asarray(-np.log10(np.clip(1 - heatmap, 1e-4, 1)) / 4)


def _opacity_table() -> np.ndarray:
    """Opacity of the heat colours for each of 256 values."""
    value = np.arange(256, dtype=np.float32) / 255.0
    ramp = np.clip((value - _VISIBLE_FROM) / (1.0 - _VISIBLE_FROM), 0.0, 1.0).astype(np.float32)
    return np.asarray(_OPACITY * ramp**1.5, np.float32)


def _colour_table() -> np.ndarray:
    """Heat colour, RGB, for each of 256 values: yellow to red, rare in foliage and soil."""
    stops = np.array([0.0, _VISIBLE_FROM, 0.6, 0.85, 1.0])
    colours = np.array([(255, 230, 60), (255, 230, 60), (255, 150, 0), (240, 40, 20), (225, 0, 90)])
    value = np.arange(256) / 255.0
    return np.stack([np.interp(value, stops, colours[:, c]) for c in range(3)], axis=1)


def _draw_outline(picture: np.ndarray, mask: np.ndarray) -> None:
    """Draw the mask's outline, white on a dark rim so that it shows on any ground."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    width = max(1, round(min(mask.shape) / 300))
    cv2.drawContours(picture, contours, -1, _OUTLINE_SHADOW, width + 2)
    cv2.drawContours(picture, contours, -1, _OUTLINE, width)


class ImageOutput(NamedTuple):
    """One image topic of a camera.

    Attributes:
        encoding: `sensor_msgs/Image.encoding`.
        draw: of the camera's picture, uint8 RGB (H, W, 3), and what was found in it; gives an
            array of that encoding, (H, W) or (H, W, 3).
    """

    encoding: str
    draw: Callable[[np.ndarray, Detection], np.ndarray]


IMAGE_OUTPUTS: dict[str, ImageOutput] = {
    "heatmap": ImageOutput(
        "32FC1", lambda _, found: np.ascontiguousarray(found.heatmap, np.float32)
    ),
    "mask": ImageOutput("mono8", lambda _, found: found.mask.astype(np.uint8) * ANOMALY),
    "confidence": ImageOutput("mono8", lambda _, found: confidence(found.heatmap)),
    "uncertainty": ImageOutput(
        "32FC1", lambda _, found: np.ascontiguousarray(found.uncertainty, np.float32)
    ),
    "segments": ImageOutput("16UC1", lambda _, found: segments_16_bit(found.segments)),
    "edited": ImageOutput("rgb8", lambda _, found: found.edited),
    "overlay": ImageOutput("rgb8", overlay),
}
"""The image topics of a camera, by name."""


def render(name: str, image: np.ndarray, detection: Detection) -> np.ndarray:
    """The output `name` of one frame; see :class:`ImageOutput`.

    Raises:
        ValueError: unknown name.
    """
    if name not in IMAGE_OUTPUTS:
        raise ValueError(f"output {name!r} is none of {', '.join(IMAGE_OUTPUTS)}")
    return IMAGE_OUTPUTS[name].draw(image, detection)
