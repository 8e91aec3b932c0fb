"""Files that appear under their name only when they are whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Calls ``write`` with a path beside ``path`` and moves what it wrote into place.

    Raises:
        OSError: it cannot be written. Nothing is left behind, whatever the exception.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial)
        os.replace(partial, path)
    except BaseException:  # Ctrl-C too
        partial.unlink(missing_ok=True)
        raise
