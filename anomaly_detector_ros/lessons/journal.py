"""The journal of lessons, newest last: what a detector was taught, by whom, and what it took."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from anomaly_detector_ros.calibration.calibration import (
    DEFAULT_CAMERA,
    NominalScores,
    pack,
    unpack,
)
from anomaly_detector_ros.distances.base import Taught
from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.runtime.fitted_file import open_fitted, save_fitted

KIND = "lessons"
MOST_VECTORS = 8000
"""Feature vectors that all lessons may hold: a search of twice the shipped memory besides it."""
MOST_BYTES = 16 << 20
"""Of the file, about."""

_FORMAT = 1
_LIBRARIES = ("torch", "numpy")
# What an entry takes in the file's header.
_ENTRY_BYTES = 1000


@dataclass(frozen=True)
class Lesson:
    """One lesson.

    Attributes:
        kind: ``teach``: frames are nominal; ``accept``: what was pointed at is, or ``reject``: is
            not.
        vectors: int8 (N, C), the directions of the features that were new.
        camera: whose frames they are; "" of files.
        asked_by: the service, topic or command.
        time: of the lesson, seconds since 1970.
        frames: how many were taken.
        left_out: names of frames that were not, as an anomaly seems to stand there.
        about: what was taken, in words.
        thumbnails: JPEG files of some of the frames.
        scores: of these frames, each by a memory that knows the others; None where they were too
            few.
    """

    kind: Literal["teach", "accept", "reject"]
    vectors: Tensor
    camera: str = ""
    asked_by: str = ""
    time: float = field(default_factory=time.time)
    frames: int = 1
    left_out: tuple[str, ...] = ()
    about: str = ""
    thumbnails: tuple[bytes, ...] = ()
    scores: NominalScores | None = None

    @property
    def size(self) -> int:
        """Bytes in the file, about."""
        knots = 0 if self.scores is None else self.scores.distribution.scores.nbytes * 2
        texts = sum(len(text) for text in (self.about, *self.left_out))
        pictures = sum(map(len, self.thumbnails))
        return self.vectors.numel() + knots + texts + pictures + _ENTRY_BYTES

    def to_dict(self) -> dict[str, Any]:
        """For JSON and for people, without vectors and pictures."""
        return {
            "kind": self.kind,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.time)),
            "camera": self.camera,
            "asked_by": self.asked_by,
            "frames": self.frames,
            "left_out": list(self.left_out),
            "about": self.about,
            "vectors": len(self.vectors),
            "thumbnails": len(self.thumbnails),
        }


@dataclass(frozen=True)
class Lessons:
    """All lessons of one detector. Adding and undoing give others; these stay as they are.

    Attributes:
        fingerprint: of the profile they were taken with; see `building.fingerprint`.
        memory: sha256 of the distance that was fitted, which they add to.
        entries: oldest first.
    """

    fingerprint: Mapping[str, Any]
    memory: str
    entries: tuple[Lesson, ...] = ()

    @property
    def vectors(self) -> int:
        """Feature vectors of all of them."""
        return sum(len(each.vectors) for each in self.entries)

    @property
    def size(self) -> int:
        """Bytes of the file, about."""
        return sum(each.size for each in self.entries)

    @property
    def room(self) -> int:
        """Vectors that there is room for."""
        return MOST_VECTORS - self.vectors

    def added(self, lesson: Lesson) -> Lessons:
        """These and one more.

        Raises:
            UserError: there is no room for it.
        """
        together = replace(self, entries=(*self.entries, lesson))
        if together.vectors > MOST_VECTORS or together.size > MOST_BYTES:
            raise UserError(
                f"no room for another lesson: {len(self.entries)} hold {self.vectors} of "
                f"{MOST_VECTORS} vectors and {self.size / 2**20:.1f} of {MOST_BYTES >> 20} MiB: "
                "undo some, or export them and begin anew with a calibration of your own"
            )
        return together

    def undone(self) -> tuple[Lessons, Lesson]:
        """These without the last one, and that one.

        Raises:
            UserError: there is none.
        """
        if not self.entries:
            raise UserError("no lesson to undo: nothing was taught")
        return replace(self, entries=self.entries[:-1]), self.entries[-1]

    def taught(self) -> list[Taught]:
        """What a distance is taught, oldest first."""
        return [
            Taught(each.vectors, each.kind != "reject", each.kind != "teach")
            for each in self.entries
            if len(each.vectors)
        ]

    def scores(self) -> NominalScores | None:
        """What of the scores of all lessons counts: the highest, and the levels of the last one."""
        joined: NominalScores | None = None
        for each in self.entries:
            if each.scores is not None and joined is not None:
                lowered = each.scores.distribution.lowered(joined.distribution)
                joined = replace(each.scores, distribution=lowered)
            else:
                joined = each.scores or joined
        return joined

    def save(self, path: Path) -> None:
        """Writes one safetensors file, whole or not at all; `load_lessons` reads it.

        Raises:
            UserError: it cannot be written.
        """
        entries: list[dict[str, Any]] = []
        tensors: dict[str, Tensor] = {}
        for number, lesson in enumerate(self.entries):
            held = {**lesson.to_dict(), "time": lesson.time}
            tensors[f"{number}.vectors"] = lesson.vectors
            for index, picture in enumerate(lesson.thumbnails):
                tensors[f"{number}.thumbnail{index}"] = torch.frombuffer(
                    bytearray(picture), dtype=torch.uint8
                )
            if lesson.scores is not None:
                held["scores"], packed = pack({DEFAULT_CAMERA: lesson.scores})
                tensors |= {f"{number}.{name}": tensor for name, tensor in packed.items()}
            entries.append(held)
        header = {
            "format": _FORMAT,
            "fingerprint": self.fingerprint,
            "memory": self.memory,
            "lessons": entries,
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_fitted(path, KIND, header, tensors, _LIBRARIES)
        except OSError as error:
            raise UserError(
                f"cannot write the lessons '{path}' ({one_line(error)}): make room or choose "
                "another file; nothing was changed"
            ) from error


def load_lessons(path: Path) -> Lessons:
    """Lessons as `Lessons.save` wrote them.

    Raises:
        UserError: missing, truncated or altered, or a file of another kind.
    """
    with open_fitted(path, KIND, "teach") as (header, tensors):
        if header["format"] != _FORMAT:
            raise ValueError(f"format {header['format']}, this release reads {_FORMAT}")
        entries = tuple(
            _lesson(str(number), entry, tensors) for number, entry in enumerate(header["lessons"])
        )
        return Lessons(dict(header["fingerprint"]), str(header["memory"]), entries)


def _lesson(prefix: str, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Lesson:
    vectors = tensors[f"{prefix}.vectors"]
    if vectors.ndim != 2 or vectors.dtype != torch.int8 or entry["kind"] not in _KINDS:
        raise ValueError("a lesson is none")
    scores = None
    if "scores" in entry:
        own = {name.removeprefix(f"{prefix}."): each for name, each in tensors.items()}
        scores = unpack(entry["scores"], own)[DEFAULT_CAMERA]
    return Lesson(
        entry["kind"],
        vectors,
        str(entry["camera"]),
        str(entry["asked_by"]),
        float(entry["time"]),
        int(entry["frames"]),
        tuple(map(str, entry["left_out"])),
        str(entry["about"]),
        tuple(
            np.asarray(tensors[f"{prefix}.thumbnail{index}"]).tobytes()
            for index in range(int(entry["thumbnails"]))
        ),
        scores,
    )


_KINDS = ("teach", "accept", "reject")


def remove_partial(path: Path) -> None:
    """Removes what a process that was killed while it wrote the file left beside it."""
    for left in path.parent.glob(f"{path.name}.*.partial"):
        left.unlink(missing_ok=True)


def default_file(node: str) -> Path:
    """Where a node keeps its lessons if nobody says: in ROS's own folder of the user.

    Args:
        node: its fully qualified name, such as ``/robot1/anomaly_detector``.
    """
    home = os.environ.get("ROS_HOME") or os.path.expanduser("~/.ros")
    return Path(home) / f"{node.strip('/').replace('/', '_')}_lessons.safetensors"
