"""A sheet of pictures that shows what the method did to some frames, one row a frame."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image as PilImage
from PIL import ImageDraw, ImageFont

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.runtime.files import replace_file

TITLES = (
    "input",
    "edit",
    "features of the input",
    "features of the edit",
    "anomaly map",
    "averaged over segments",
    "mask",
    "truth",
)
# Okabe and Ito's palette: told apart by colour-blind readers too.
HIT, MISS, FALSE_ALARM = (0, 158, 115), (213, 94, 0), (240, 228, 66)
ANOMALY, VOID = (86, 180, 233), (128, 128, 128)

_COLORMAP = cv2.COLORMAP_INFERNO  # perceptually uniform
_GAP, _LINE = 6, 22
_INK, _PAPER = (30, 30, 30), (255, 255, 255)
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
_STRETCH = (1, 99)


@dataclass(frozen=True)
class Panels:
    """What one row shows.

    Attributes:
        name: of the frame.
        image: uint8 RGB (H, W, 3).
        edited: uint8 RGB of any size.
        features_input: float (C, h, w) with C >= 3, the input's feature map ...
        features_edit: ... and the edit's, of the same shape.
        raw: float (H, W), the anomaly map before ...
        refined: ... and after it is averaged over segments, on the same scale.
        mask: bool (H, W), what was taken for an anomaly.
        anomaly: bool (H, W), the truth.
        valid: bool (H, W), False where the truth is void.
    """

    name: str
    image: np.ndarray
    edited: np.ndarray
    features_input: np.ndarray
    features_edit: np.ndarray
    raw: np.ndarray
    refined: np.ndarray
    mask: np.ndarray
    anomaly: np.ndarray
    valid: np.ndarray


def gallery(
    rows: Sequence[Panels],
    file: Path,
    *,
    value_range: tuple[float, float] = (0.0, 1.0),
    panel_width: int = 256,
) -> None:
    """Writes a sheet with a row for each frame, under column titles and their keys.

    Args:
        rows: the frames; each row is as high as its image is at the panels' width.
        file: PNG or JPEG, by its suffix.
        value_range: what the ends of the colour scale of both maps stand for, in all rows.
        panel_width: of every column, in pixels.

    Raises:
        UserError: another suffix, or the file cannot be written.
        ValueError: no row, or an empty value range.
    """
    if not rows:
        raise ValueError("a gallery needs at least one row")
    if file.suffix.lower() not in _FORMATS:
        raise UserError(f"gallery '{file}' is no PNG or JPEG: end its name in .png or .jpg")
    bands = [_header(value_range, panel_width)]
    for row in rows:
        bands += [_caption(row.name, bands[0].shape[1]), _row(row, value_range, panel_width)]
    bands.append(np.full((_GAP, *bands[0].shape[1:]), _PAPER, np.uint8))
    buffer = io.BytesIO()
    PilImage.fromarray(np.concatenate(bands)).save(
        buffer, _FORMATS[file.suffix.lower()], quality=92
    )
    try:
        replace_file(file, lambda partial: partial.write_bytes(buffer.getvalue()))
    except OSError as error:
        raise UserError(
            f"cannot write '{file}' ({error.strerror}): make room or give another file"
        ) from error


def feature_colours(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two feature maps in three colours that mean the same in both.

    The three principal components of both together, of features brought to unit length, as the
    cosine distance sees them; each component is stretched between its 1st and 99th percentile.

    Args:
        a: float (C, h, w), C >= 3.
        b: of the same shape.

    Returns:
        uint8 RGB (h, w, 3) of each.
    """
    from sklearn.decomposition import PCA

    vectors = np.stack([a, b]).astype(np.float32).transpose(0, 2, 3, 1)
    shape = vectors.shape[:-1]
    vectors = vectors.reshape(-1, vectors.shape[-1])
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    pca = PCA(n_components=3, random_state=0)
    projected = pca.fit_transform(vectors)
    # An axis is the same either way round: let its largest weight be positive.
    largest = np.abs(pca.components_).argmax(axis=1)
    projected *= np.sign(pca.components_[range(3), largest])
    low, high = np.percentile(projected, _STRETCH, axis=0)
    # A component that holds next to nothing stays dark: its noise must not look like structure.
    spread = np.maximum(high - low, 1e-3 * (high - low).max() + 1e-12)
    stretched = np.clip((projected - low) / spread, 0, 1)
    colours = np.rint(stretched * 255).astype(np.uint8).reshape(*shape, 3)
    return colours[0], colours[1]


def map_colours(values: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """An anomaly map as colours of a fixed scale, black to pale yellow: uint8 RGB (H, W, 3).

    Args:
        values: float (H, W); beyond the range they take its ends' colours.
        value_range: what the ends of the scale stand for.

    Raises:
        ValueError: an empty range.
    """
    low, high = value_range
    if not low < high:
        raise ValueError(f"the value range {low} to {high} is empty")
    scaled = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)
    grey = np.rint(scaled * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(grey, _COLORMAP), cv2.COLOR_BGR2RGB)


def truth_colours(image: np.ndarray, anomaly: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The image in pale grey, anomalies coloured, void hatched: uint8 RGB (H, W, 3).

    Args:
        image: uint8 RGB (H, W, 3).
        anomaly: bool (H, W).
        valid: bool (H, W), False where the truth is void.
    """
    return _hatched(_painted(_pale(image), anomaly & valid, ANOMALY), ~valid)


def mask_colours(
    image: np.ndarray, mask: np.ndarray, anomaly: np.ndarray, valid: np.ndarray
) -> np.ndarray:
    """The mask held against the truth on the pale image: hits, misses, false alarms, void hatched.

    Args:
        image: uint8 RGB (H, W, 3).
        mask: bool (H, W), what was taken for an anomaly.
        anomaly: bool (H, W), the truth.
        valid: bool (H, W), False where the truth is void.

    Returns:
        uint8 RGB (H, W, 3).
    """
    shown = _pale(image)
    for where, colour in (
        (mask & anomaly, HIT),
        (~mask & anomaly, MISS),
        (mask & ~anomaly, FALSE_ALARM),
    ):
        shown = _painted(shown, where & valid, colour)
    return _hatched(shown, ~valid)


def _pale(image: np.ndarray) -> np.ndarray:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.repeat((grey // 2 + 96)[..., None], 3, axis=2)


def _painted(image: np.ndarray, where: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """The image with a colour laid over some pixels, thin enough to let the scene through."""
    painted = image.copy()
    painted[where] = np.rint(0.25 * image[where] + 0.75 * np.array(colour)).astype(np.uint8)
    return painted


def _hatched(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The image with grey diagonals over some pixels, about 40 across its width."""
    rows, columns = np.indices(where.shape)
    period = max(4, where.shape[1] // 40)
    stripes = (rows + columns) % period < period // 2
    hatched = image.copy()
    hatched[where] = VOID
    hatched[where & stripes] = (90, 90, 90)
    return hatched


def _row(row: Panels, value_range: tuple[float, float], width: int) -> np.ndarray:
    """The panels of a frame side by side, uint8 RGB."""
    height = max(1, round(width * row.image.shape[0] / row.image.shape[1]))
    features = feature_colours(row.features_input, row.features_edit)
    truth = truth_colours(row.image, row.anomaly, row.valid)
    panels = (
        (row.image, cv2.INTER_AREA),
        (row.edited, cv2.INTER_AREA),
        (features[0], cv2.INTER_NEAREST),
        (features[1], cv2.INTER_NEAREST),
        (map_colours(row.raw, value_range), cv2.INTER_AREA),
        (map_colours(row.refined, value_range), cv2.INTER_AREA),
        (mask_colours(row.image, row.mask, row.anomaly, row.valid), cv2.INTER_AREA),
        (truth, cv2.INTER_AREA),
    )
    return _beside([cv2.resize(panel, (width, height), interpolation=how) for panel, how in panels])


def _beside(panels: Sequence[np.ndarray]) -> np.ndarray:
    """Panels of one size with gaps between and around them."""
    height = panels[0].shape[0]
    gap = np.full((height, _GAP, 3), _PAPER, np.uint8)
    parts = [gap]
    for panel in panels:
        parts += [panel, gap]
    return np.concatenate(parts, axis=1)


def _caption(text: str, width: int) -> np.ndarray:
    band = PilImage.new("RGB", (width, _LINE), _PAPER)
    ImageDraw.Draw(band).text((_GAP, 5), text, _INK, ImageFont.load_default(13))
    return np.asarray(band)


def _header(value_range: tuple[float, float], width: int) -> np.ndarray:
    """Column titles and, below them, what the colours mean."""
    scale = _scale(value_range, width)
    keys = {
        "features of the input": _key(width, ("same feature, same colour in both", _INK)),
        "anomaly map": scale,
        "averaged over segments": scale,
        "mask": _key(width, ("hit", HIT), ("miss", MISS), ("false alarm", FALSE_ALARM)),
        "truth": _key(width, ("anomaly", ANOMALY), ("void", VOID)),
    }
    blank = np.full((_LINE, width, 3), _PAPER, np.uint8)
    panels = []
    for title in TITLES:
        panel = PilImage.new("RGB", (width, _LINE + 4), _PAPER)
        ImageDraw.Draw(panel).text((0, 4), title, _INK, ImageFont.load_default(16))
        panels.append(np.concatenate([np.asarray(panel), keys.get(title, blank)]))
    return _beside(panels)


def _key(width: int, *entries: tuple[str, tuple[int, int, int]]) -> np.ndarray:
    """Words behind squares of the colours they explain."""
    band = PilImage.new("RGB", (width, _LINE), _PAPER)
    draw, font, x = ImageDraw.Draw(band), ImageFont.load_default(13), 0
    for text, colour in entries:
        if colour != _INK:
            draw.rectangle((x, 4, x + 11, 15), colour, _INK)
            x += 16
        draw.text((x, 2), text, _INK, font)
        x += round(draw.textlength(text, font)) + 12
    return np.asarray(band)


def _scale(value_range: tuple[float, float], width: int) -> np.ndarray:
    """The colour scale between the values that its ends stand for."""
    band = PilImage.new("RGB", (width, _LINE), _PAPER)
    draw, font = ImageDraw.Draw(band), ImageFont.load_default(13)
    low, high = (f"{value:g}" for value in value_range)
    start = round(draw.textlength(low, font)) + 6
    end = width - round(draw.textlength(high, font)) - 6
    draw.text((0, 2), low, _INK, font)
    draw.text((end + 6, 2), high, _INK, font)
    ramp = np.linspace(*value_range, max(1, end - start))[None].repeat(10, axis=0)
    band.paste(PilImage.fromarray(map_colours(ramp, value_range)), (start, 5))
    return np.asarray(band)
