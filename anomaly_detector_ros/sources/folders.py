"""The files below a folder, as people and their machines leave folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.imaging.images import IMAGE_SUFFIXES, say_once

# Besides hidden ones: copies and rubbish of NAS, macOS and Windows, and what pages show.
_NO_PICTURES = {
    *("@eadir", "@__thumb", "#recycle", "$recycle.bin", "__macosx", "thumbnails", "index_files"),
}
_LABELS = {"masks", "labels", "annotations", "truth"}


def files_below(folder: Path) -> list[Path]:
    """All files in a fixed order; links to folders are followed, each folder is read once.

    Hidden files and folders are left out, and folders of thumbnails. A folder that cannot be read
    is left out with a word in the log.
    """
    found: list[Path] = []
    seen: set[str] = set()
    waiting = [folder]
    while waiting:
        top = waiting.pop(0)
        # Links wait until the folders themselves have been read: those are the better names.
        for path, folders, files in os.walk(top, onerror=_tell):
            real = os.path.realpath(path)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            kept = [name for name in sorted(folders) if _counts(name)]
            links = [name for name in kept if os.path.islink(os.path.join(path, name))]
            waiting += [Path(path, name) for name in links]
            folders[:] = [name for name in kept if name not in links]
            found += [Path(path, name) for name in files if _counts(name)]
    return sorted(file for file in found if file.is_file())


def find_images(path: Path) -> list[Path]:
    """All picture files below a folder, by their suffixes; see :func:`files_below`.

    Raises:
        UserError: the folder does not exist or holds no picture.
    """
    if not path.is_dir():
        raise UserError(f"'{path}' is not a folder: give a folder of images")
    found = [file for file in files_below(path) if is_image(file)]
    if not found:
        raise UserError(f"no images in '{path}': expected {', '.join(IMAGE_SUFFIXES)} files")
    return found


def is_image(file: Path) -> bool:
    """Whether a file is called as pictures are."""
    return file.suffix.lower() in IMAGE_SUFFIXES


def without_labels(folder: Path) -> Path:
    """The folder of images of a labelled data set, whose labels are picture files too; else it."""
    if (folder / "images").is_dir() and any(name in _LABELS for name in _folders_in(folder)):
        say_once(f"'{folder}'", "a labelled data set, of which images/ is read")
        return folder / "images"
    return folder


def _folders_in(folder: Path) -> Iterator[str]:
    return (path.name.lower() for path in folder.iterdir() if path.is_dir())


def _counts(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _NO_PICTURES


def _tell(error: OSError) -> None:
    say_once(f"'{error.filename}'", f"cannot be read ({error.strerror}): left out")
