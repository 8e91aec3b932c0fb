"""Files and directories that appear under their name only when they are whole; hashes of files."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Calls ``write`` with the path of an empty file beside ``path`` and moves that into its place.

    It keeps the mode that `open` gives: safetensors makes its files unreadable to other users,
    whatever the umask.

    Raises:
        OSError: it cannot be written. Nothing is left behind, whatever the exception.
    """
    # A name of its own: another process may be writing the same file.
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        mode = _create(partial)
        write(partial)
        partial.chmod(mode)
        os.replace(partial, path)
    except BaseException:  # Ctrl-C too
        partial.unlink(missing_ok=True)
        raise


def replace_directory(path: Path, write: Callable[[Path], object]) -> None:
    """Calls ``write`` with a new directory beside ``path`` and moves that into its place.

    All files get the mode that `open` gives; see `replace_file`.

    Raises:
        OSError: it cannot be written. Nothing is left behind, whatever the exception.
    """
    partial = path.with_name(f"{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir(parents=True)
    try:
        write(partial)
        mode = _create(partial / ".mode")
        (partial / ".mode").unlink()
        for file in partial.rglob("*"):
            if file.is_file():
                file.chmod(mode)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)
    except BaseException:  # Ctrl-C too
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _create(file: Path) -> int:
    """Makes an empty file; its mode. The umask cannot be asked for, only set for all threads."""
    file.touch()
    return file.stat().st_mode


def hash_file(path: Path, report: Callable[[int], None] | None = None) -> str:
    """Hex sha256 of a file's content; `report` is given the bytes hashed so far."""
    digest = hashlib.sha256()
    done = 0
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
            done += len(chunk)
            if report:
                report(done)
    return digest.hexdigest()
