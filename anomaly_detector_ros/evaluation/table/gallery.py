"""A sheet of pictures that shows what the method did to some frames, one row a frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.runtime.files import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
_KEYS = {"hit": HIT, "miss": MISS, "false alarm": FALSE_ALARM, "anomaly": ANOMALY, "void": VOID}

_MAPS = slice(4, 6)
_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}
_STRETCH = (1, 99)
_DPI = 100


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
    """Writes a sheet with a row for each frame, column titles above and keys below.

    Args:
        rows: the frames; each row is as high as its image is at the panels' width.
        file: PNG or JPEG, by its suffix.
        value_range: what the ends of the colour scale of both maps stand for, in all rows.
        panel_width: of every column, in pixels.

    Raises:
        UserError: another suffix, or the file cannot be written.
        ValueError: no row.
    """
    if not rows:
        raise ValueError("a gallery needs at least one row")
    kind = _FORMATS.get(file.suffix.lower())
    if kind is None:
        raise UserError(f"gallery '{file}' is no PNG or JPEG: end its name in .png or .jpg")
    figure = draw(rows, value_range, panel_width)
    options: dict[str, Any] = {"pil_kwargs": {"quality": 92}} if kind == "jpeg" else {}
    try:
        replace_file(file, lambda path: figure.savefig(path, format=kind, **options))
    except OSError as error:
        raise UserError(
            f"cannot write '{file}' ({error.strerror}): make room or give another file"
        ) from error


def draw(rows: Sequence[Panels], value_range: tuple[float, float], panel_width: int) -> Figure:
    """The sheet as a figure; see `gallery`."""
    # Not pyplot, which would look for a display and keep every figure.
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    width = panel_width / _DPI
    heights = [width * row.image.shape[0] / row.image.shape[1] for row in rows]
    size = (len(TITLES) * width, sum(heights) + 0.25 * len(rows) + 1)
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    grid = figure.add_gridspec(len(rows) + 1, len(TITLES), height_ratios=[*heights, 0.12])
    for number, row in enumerate(rows):
        height, breadth = row.image.shape[:2]
        for column, (title, panel) in enumerate(zip(TITLES, _panels(row), strict=True)):
            where = figure.add_subplot(grid[number, column], xticks=[], yticks=[])
            if number == 0:
                where.set_title(title)
            if column == 0:
                where.set_xlabel(row.name, loc="left", fontsize=9)
            where.imshow(
                panel,
                cmap="inferno",  # perceptually uniform
                vmin=value_range[0],
                vmax=value_range[1],
                extent=(0, breadth, height, 0),
            )
    scale = figure.add_subplot(grid[-1, _MAPS])
    figure.colorbar(figure.axes[_MAPS.start].images[0], cax=scale, orientation="horizontal")
    keys = [
        Patch(color=(red / 255, green / 255, blue / 255), label=name)
        for name, (red, green, blue) in _KEYS.items()
    ]
    key = figure.add_subplot(grid[-1, _MAPS.stop :])
    key.axis("off")
    key.legend(handles=keys, loc="center", ncols=len(keys), frameon=False, fontsize=8)
    return figure


def _panels(row: Panels) -> list[np.ndarray]:
    """In the order of `TITLES`: RGB pictures, or maps (H, W)."""
    return [
        row.image,
        row.edited,
        *feature_colours(row.features_input, row.features_edit),
        row.raw,
        row.refined,
        mask_colours(row.image, row.mask, row.anomaly, row.valid),
        truth_colours(row.image, row.anomaly, row.valid),
    ]


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
