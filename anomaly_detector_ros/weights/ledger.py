"""Which files were hashed before, so that a model is hashed once and not at every start."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from anomaly_detector_ros.runtime.files import hash_file
from anomaly_detector_ros.weights.landing import replace_file


class Ledger:
    """A small JSON file: path -> the file's size, times and sha256 when it was last hashed.

    A file is hashed again as soon as its size, modification time or change time differ (the last
    cannot be set by hand). A ledger that cannot be read or written only costs time.
    """

    def __init__(self, path: Path) -> None:
        """`path` need not exist."""
        self._path = path

    def sha256(
        self, file: Path, *, anew: bool = False, report: Callable[[int], None] | None = None
    ) -> str:
        """Hex sha256 of `file`, hashed only if it changed since it last was, or if asked `anew`.

        `report` is given the bytes hashed so far.
        """
        # Taken before hashing: what changes meanwhile is noticed the next time.
        mark = _mark(file)
        known = self._read().get(os.path.realpath(file))
        if not anew and isinstance(known, dict) and known.get("mark") == mark:
            return str(known.get("sha256"))
        sha256 = hash_file(file, report)
        self._write(file, mark, sha256)
        return sha256

    def remember(self, file: Path, sha256: str) -> None:
        """Write down the content of a `file` that was hashed while it was written."""
        self._write(file, _mark(file), sha256)

    def _write(self, file: Path, mark: list[int], sha256: str) -> None:
        content = self._read()
        content[os.path.realpath(file)] = {"mark": mark, "sha256": sha256}
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}.partial")
        # A read-only or full disk: the file is hashed again next time.
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                partial.write_text(json.dumps(content, indent=1), "utf-8")
                replace_file(partial, self._path)
            except OSError:
                partial.unlink(missing_ok=True)

    def _read(self) -> dict[str, object]:
        try:
            content = json.loads(self._path.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}


def _mark(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
