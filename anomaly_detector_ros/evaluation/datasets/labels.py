"""Label files: PNG pictures whose pixel values are class ids or colours.

Labels are read more strictly than pictures: a converted bit depth or palette would change ids.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image as PilImage

from anomaly_detector_ros.errors import UserError, one_line

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Bytes of the header chunk, which comes first in every PNG file.
_DEPTH, _COLOUR_TYPE = 24, 25
_COLOUR_TYPES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey-alpha", 6: "RGBA"}
_GREY, _RGB = 0, 2


def read_ids(file: Path) -> np.ndarray:
    """An 8-bit grey PNG whose values are class ids: uint8 (H, W).

    Raises:
        UserError: unreadable, no PNG, truncated, or of another kind (16 bit, palette, RGBA, ...).
    """
    return _read_png(file, _GREY)


def read_colours(file: Path) -> np.ndarray:
    """An 8-bit RGB PNG whose colours stand for classes: uint8 (H, W, 3).

    Raises:
        UserError: unreadable, no PNG, truncated, or of another kind (16 bit, palette, RGBA, ...).
    """
    return _read_png(file, _RGB)


def _read_png(file: Path, colour_type: int) -> np.ndarray:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read label '{file}' ({error.strerror}): mend the file") from error
    if not data.startswith(_SIGNATURE) or len(data) <= _COLOUR_TYPE:
        raise UserError(f"label '{file}' is no PNG file: save it as PNG")
    if (data[_DEPTH], data[_COLOUR_TYPE]) != (8, colour_type):
        kind = _COLOUR_TYPES.get(data[_COLOUR_TYPE], "unknown")
        raise UserError(
            f"label '{file}' is a {kind} PNG of {data[_DEPTH]} bits: "
            f"save it as {_COLOUR_TYPES[colour_type]} of 8 bits"
        )
    try:
        with PilImage.open(io.BytesIO(data), formats=("PNG",)) as picture:
            picture.load()
            return np.array(picture)
    except Exception as error:  # Pillow raises nearly anything on corrupt data
        raise UserError(
            f"label '{file}' is truncated or corrupt ({one_line(error, 100)}): copy it anew"
        ) from error
