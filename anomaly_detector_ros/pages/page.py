"""One self-contained page, ``index.html``, of the frames that a command judged.

The page holds its style, its code and the list of frames; the frames' pictures lie beside it in
`FOLDER`. It needs no network and no server. Everything here is text and bytes: commands write them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import cv2
import jinja2
import numpy as np

from anomaly_detector_ros.imaging.rendering import encode_jpeg, heat_picture

FILE = "index.html"
FOLDER = "index_files"

LAYERS = {
    "input": "Input",
    "edited": "Edit",
    "heatmap": "Heatmap",
    "mask": "Mask",
    "overlay": "Overlay",
}
"""Pictures that most frames have, and their titles."""

_LONGEST = 1280
"""Pixels of a picture's longer side at most."""
_THUMB = 160
_QUALITY = 85
_SCALES = {
    # The marks of `heat_picture`: the darkest colour, then by the order of magnitude.
    True: ("higher than this share of nominal pixels", ["0", "90%", "99%", "99.9%", "99.99%"]),
    False: ("raw distance, not calibrated", ["0", "0.25", "0.5", "0.75", "1"]),
}


@dataclass(frozen=True)
class Column:
    """A number that frames have and the list can be sorted by.

    Attributes:
        key: of `PageFrame.values`.
        title: for people.
        unit: how it is written.
    """

    key: str
    title: str
    unit: Literal["score", "share", "seconds"] = "score"


SCORE = Column("score", "Score")
ANOMALOUS = Column("anomalous", "Anomalous pixels", "share")
SECONDS = Column("seconds", "Time", "seconds")


@dataclass(frozen=True)
class PageFrame:
    """One frame of the list.

    Attributes:
        name: of the frame; its pictures are called by it.
        layers: which pictures it has, of `Page.layers`.
        values: numbers by `Column.key`; one that is not there is not known.
        timings: seconds by stage.
        source: where the frame is from, for people.
        files: names of its results beside the page.
        motion: name of the picture or video of its reverse diffusion; "" for none.
    """

    name: str
    layers: Sequence[str] = ()
    values: Mapping[str, float] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    files: Sequence[str] = ()
    motion: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text below a head."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Page:
    """What a page shows.

    Attributes:
        title: one line.
        facts: short statements below it.
        frames: in their order.
        columns: the numbers that frames have; the first one is plotted at first. A calibrated
            score would not do: it is close to 1 wherever anything is found.
        layers: titles of the pictures that frames may have.
        start: the two layers that are compared at first.
        calibrated: what the colours of heatmaps mean; see `rendering.heat_picture`.
        table: shown above the frames.
        links: names of other results beside the page.
    """

    title: str
    facts: Sequence[str]
    frames: Sequence[PageFrame]
    columns: Sequence[Column] = (ANOMALOUS, SCORE, SECONDS)
    layers: Mapping[str, str] = field(default_factory=lambda: LAYERS)
    start: tuple[str, str] = ("input", "overlay")
    calibrated: bool = True
    table: Table | None = None
    links: Sequence[str] = ()


def frame_pictures(
    name: str, layers: Mapping[str, np.ndarray], *, calibrated: bool
) -> dict[str, bytes]:
    """The files of a frame's pictures, JPEG, by their names in `FOLDER`; the last is a thumbnail.

    Args:
        name: of the frame.
        layers: by key: uint8 (H, W, 3) RGB or (H, W) grey, or a float heatmap (H, W) in [0, 1].
            The thumbnail is of the last one.
        calibrated: what the heatmaps' values are; see `rendering.heat_picture`.
    """
    files = {}
    picture = np.zeros((1, 1, 3), np.uint8)
    for key, array in layers.items():
        picture = _small(_as_rgb(array, calibrated), _LONGEST)
        files[f"{name}_{key}.jpg"] = encode_jpeg(picture, _QUALITY)
    files[f"{name}_thumb.jpg"] = encode_jpeg(_small(picture, _THUMB), _QUALITY)
    return files


def render_page(page: Page, version: str) -> str:
    """The page's text, HTML that can be written as UTF-8 whatever names its frames bear.

    Args:
        page: what it shows.
        version: of this package.
    """
    meaning, marks = _SCALES[page.calibrated]
    text = _template().render(
        page=page,
        version=version,
        data=_data(page),
        scale={"colours": _scale_colours(), "meaning": meaning, "marks": marks},
        link=_link,
    )
    # A name that is no Unicode cannot be written as such.
    return text.encode(errors="replace").decode()


def _data(page: Page) -> dict[str, Any]:
    """What the page's code reads."""
    keys = list(page.layers)
    return {
        "layers": [{"key": key, "title": title} for key, title in page.layers.items()],
        "columns": [vars(column) for column in page.columns],
        "start": page.start,
        "frames": [
            {
                "name": frame.name,
                "base": _link(f"{FOLDER}/{frame.name}"),
                "has": sorted(keys.index(key) for key in frame.layers),
                "values": [_number(frame.values.get(column.key)) for column in page.columns],
                "timings": {stage: _number(seconds) for stage, seconds in frame.timings.items()},
                "source": frame.source,
                "files": [
                    [name.removeprefix(f"{frame.name}_"), _link(name)] for name in frame.files
                ],
                "motion": _link(frame.motion) if frame.motion else "",
            }
            for frame in page.frames
        ],
    }  # fmt: skip


def _number(value: float | None) -> float | None:
    """Five digits are enough for people; None where there is no number, which JSON doesn't know."""
    return float(f"{value:.5g}") if value is not None and np.isfinite(value) else None


def _link(path: str) -> str:
    """The relative address of a file beside the page, whatever its name."""
    return "./" + quote(os.fsencode(path))


def _as_rgb(array: np.ndarray, calibrated: bool) -> np.ndarray:
    if array.ndim == 3:
        return array
    if array.dtype == np.uint8:
        return cv2.cvtColor(array, cv2.COLOR_GRAY2RGB)
    return heat_picture(array, calibrated=calibrated)


def _small(picture: np.ndarray, longest: int) -> np.ndarray:
    height, width = picture.shape[:2]
    factor = longest / max(height, width)
    if factor >= 1:
        return picture
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def _scale_colours() -> list[str]:
    """The colours of heatmaps from the lowest value to the highest, as CSS writes them."""
    colours = heat_picture(np.linspace(0, 1, 17, dtype=np.float32)[None], calibrated=False)[0]
    return [f"rgb({r} {g} {b})" for r, g, b in colours.tolist()]


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Not sorted: stages are told in their order.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment.get_template("page.html")
