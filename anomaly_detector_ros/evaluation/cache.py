"""Results on disk under the hash of what they were computed from, so that a run can go on later."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.runtime.files import replace_file

# To be raised when the same settings come to mean other numbers.
FORMAT = 1


class Cache:
    """Arrays and files by key; processes and machines that share the directory share them.

    Args:
        directory: made when something is first kept.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, kind: str, key: Any, suffix: str) -> Path:
        """Where the result for ``key`` (anything that JSON can write) is or would be."""
        name = digest([json.dumps([FORMAT, key], sort_keys=True, default=str).encode()])
        return self.directory / kind / name[:2] / f"{name}{suffix}"

    def array(self, kind: str, key: Any, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """The array kept for ``key``, computed and kept if there is none or it is damaged.

        Raises:
            UserError: it cannot be written.
        """
        file = self.path(kind, key, ".npz")
        try:
            with np.load(file, allow_pickle=False) as content:
                return np.asarray(content["array"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass
        array = compute()

        def write(partial: Path) -> None:
            with open(partial, "wb") as out:
                np.savez_compressed(out, array=array)

        self.keep(file, write)
        return array

    def keep(self, file: Path, write: Callable[[Path], object]) -> None:
        """Writes a file of the cache, whole or not at all."""
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(file, write)
        except OSError as error:
            raise UserError(
                f"cannot write '{file}' ({error.strerror}): make room or give another --cache"
            ) from error


def digest(chunks: Iterable[bytes]) -> str:
    """sha256 of the chunks, hex."""
    result = hashlib.sha256()
    for chunk in chunks:
        result.update(chunk)
    return result.hexdigest()


def array_digest(array: np.ndarray) -> str:
    """sha256 of an array's shape, type and content, hex."""
    head = f"{array.shape}{array.dtype}".encode()
    return digest([head, np.ascontiguousarray(array).tobytes()])


def files_digest(files: Iterable[Path]) -> str:
    """sha256 of the files' contents in the given order, hex.

    Raises:
        UserError: one cannot be read.
    """
    try:
        return digest(hashlib.sha256(file.read_bytes()).digest() for file in files)
    except OSError as error:
        raise UserError(f"cannot read '{error.filename}' ({error.strerror})") from error
