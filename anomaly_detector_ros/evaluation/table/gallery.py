"""A sheet of pictures that shows what the method did to some frames, one row a frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

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
KEYS = {
    "hit": "#009e73",
    "miss": "#d55e00",
    "false alarm": "#f0e442",
    "anomaly": "#56b4e9",
    "void": "#404040",
}
"""What pixels of the last two panels may be, and their colours."""
HIT, MISS, FALSE_ALARM, ANOMALY, VOID = range(len(KEYS))

_MAPS = slice(4, 6)
_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}
_STRETCH = (1, 99)
_DPI = 100


class Judged(Protocol):
    """A mask and what it ought to be."""

    @property
    def mask(self) -> np.ndarray:
        """Bool (H, W), what was taken for an anomaly."""

    @property
    def anomaly(self) -> np.ndarray:
        """Bool (H, W), the truth."""

    @property
    def valid(self) -> np.ndarray:
        """Bool (H, W), False where the truth is void."""


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
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    inches = panel_width / _DPI
    heights = [inches * row.image.shape[0] / row.image.shape[1] for row in rows]
    size = (len(TITLES) * inches, sum(heights) + 0.25 * len(rows) + 1)
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    grid = figure.add_gridspec(len(rows) + 1, len(TITLES), height_ratios=[*heights, 0.12])
    colours = ListedColormap(list(KEYS.values()))
    for number, row in enumerate(rows):
        height, width = row.image.shape[:2]
        whole = (0, width, height, 0)
        axes = [
            figure.add_subplot(grid[number, i], xticks=[], yticks=[]) for i in range(len(TITLES))
        ]
        axes[0].set_xlabel(row.name, loc="left", fontsize=9)
        features = feature_colours(row.features_input, row.features_edit)
        shown = (row.image, row.edited, *features, row.raw, row.refined)
        for where, panel in zip(axes, shown, strict=False):
            # A perceptually uniform scale, which pictures in colour ignore.
            where.imshow(panel, "inferno", vmin=value_range[0], vmax=value_range[1], extent=whole)
        pale = cv2.cvtColor(row.image, cv2.COLOR_RGB2GRAY)
        for where, codes in zip(axes[_MAPS.stop :], (verdicts(row), truths(row)), strict=True):
            where.imshow(pale, "gray", vmin=-192, vmax=318, extent=whole)
            painted = np.ma.masked_less(codes, 0)
            where.imshow(
                painted,
                colours,
                vmin=0,
                vmax=len(KEYS) - 1,
                alpha=0.75,
                extent=whole,
                interpolation="nearest",
            )
    for title, where in zip(TITLES, figure.axes, strict=False):
        where.set_title(title)
    scale = figure.add_subplot(grid[-1, _MAPS])
    figure.colorbar(figure.axes[_MAPS.start].images[0], cax=scale, orientation="horizontal")
    keys = [Patch(color=colour, label=name) for name, colour in KEYS.items()]
    key = figure.add_subplot(grid[-1, _MAPS.stop :])
    key.axis("off")
    key.legend(handles=keys, loc="center", ncols=len(keys), frameon=False, fontsize=8)
    return figure


def verdicts(row: Judged) -> np.ndarray:
    """The mask held against the truth: int (H, W), indices into `KEYS`, -1 for nominal pixels."""
    mask, anomaly = row.mask, row.anomaly
    cases = [~row.valid, mask & anomaly, ~mask & anomaly, mask & ~anomaly]
    return np.select(cases, [VOID, HIT, MISS, FALSE_ALARM], -1)


def verdict_picture(image: np.ndarray, row: Judged) -> np.ndarray:
    """`verdicts` in the colours of `KEYS` over the image in pale grey; uint8 RGB (H, W, 3)."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    pale = np.repeat(grey[..., None] / 2 + 96, 3, axis=2)
    colours = np.array(
        [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in KEYS.values()]
    )
    codes = verdicts(row)
    painted = np.where(codes[..., None] >= 0, 0.25 * pale + 0.75 * colours[codes], pale)
    return np.rint(painted).astype(np.uint8)


def truths(row: Panels) -> np.ndarray:
    """The truth: int (H, W), indices into `KEYS`, -1 for nominal pixels."""
    return np.select([~row.valid, row.anomaly], [VOID, ANOMALY], -1)


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
