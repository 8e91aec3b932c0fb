"""What label files hold, so that each is read once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.evaluation.cache import Cache
from anomaly_detector_ros.runtime.progress import Progress

_State = tuple[int, int]  # size in bytes, time of change in ns
_Pixels = Mapping[int, int]  # by class id


class LabelIndex:
    """How many pixels of each class label files hold, by their names, sizes and times of change.

    Args:
        cache: keeps it for the next time; by default it lasts as long as this object.
        key: of the data set and of what gives its labels their meaning; anything JSON can write.
    """

    def __init__(self, cache: Cache | None = None, key: Any = None) -> None:
        self._cache = cache
        self._file = cache.path("labels", key, ".json") if cache else None
        self._known: dict[str, tuple[_State, _Pixels]] | None = None

    def class_pixels(
        self,
        files: Sequence[Path],
        read: Callable[[Path], np.ndarray],
        progress: Progress | None = None,
    ) -> list[_Pixels]:
        """Pixels by class id, 0 to 255, of each file.

        Args:
            files: of labels.
            read: the class ids of one, integer (H, W); called for those that are not known yet.
            progress: told of these.

        Raises:
            UserError: what `read` raises; what was read before it is kept.
        """
        if self._known is None:
            self._known = self._load()
        names = [str(file.absolute()) for file in files]
        unread = []
        for name, file in zip(names, files, strict=True):
            state = _state(file)
            if name not in self._known or self._known[name][0] != state:
                unread.append((name, file, state))
        try:
            for done, (name, file, state) in enumerate(unread, 1):
                counts = np.bincount(read(file).ravel())
                held = {int(id_): int(counts[id_]) for id_ in np.flatnonzero(counts)}
                self._known[name] = state, held
                if progress:
                    progress(done, len(unread), "labels")
        finally:  # after Ctrl-C too
            if unread:
                self._save()
        return [self._known[name][1] for name in names]

    def _load(self) -> dict[str, tuple[_State, _Pixels]]:
        if self._file is None:
            return {}
        try:
            rows = json.loads(self._file.read_text(encoding="utf-8"))
            return {
                name: ((size, changed), {int(id_): int(n) for id_, n in held.items()})
                for name, size, changed, held in rows
            }
        except (OSError, ValueError, TypeError, AttributeError):  # none yet, or damaged
            return {}

    def _save(self) -> None:
        if self._cache is None or self._file is None or self._known is None:
            return
        rows = [[name, *state, held] for name, (state, held) in self._known.items()]
        content = json.dumps(rows).encode()
        with suppress(UserError):  # without an index labels are read again: slow, not wrong
            self._cache.keep(self._file, lambda partial: partial.write_bytes(content))


def _state(file: Path) -> _State:
    try:
        found = file.stat()
    except OSError as error:
        raise UserError(f"cannot read label '{file}' ({error.strerror}): mend the file") from error
    return found.st_size, found.st_mtime_ns
