"""How lessons are made of frames that a detector looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from anomaly_detector_ros.calibration.calibration import NominalScores
from anomaly_detector_ros.calibration.distribution import ScorePool
from anomaly_detector_ros.detection import Detection, frame_score
from anomaly_detector_ros.distances.base import Distance, Taught
from anomaly_detector_ros.distances.novelty import in_bytes
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.imaging.rendering import encode_jpeg
from anomaly_detector_ros.lessons.journal import Lesson

MOST_OF_A_LESSON = 2000
"""Vectors that one lesson of frames may add: it leaves room for others."""
FEW = 5
"""With fewer frames than these none can be told from the others, nor their scores be known."""
_FOLDS = 10
# Chosen on YCOR, where it leaves out half to nine tenths of the frames with an anomaly and one in
# ten of those without; see docs/teach.md.
_OUTLYING = 1.25
_PIXELS = 40_000
_THUMBNAIL = 160
_THUMBNAILS = 8


@dataclass(frozen=True)
class Look:
    """What a lesson needs of a frame that was looked at.

    Attributes:
        name: of the frame, for people.
        features: float16 (1 + K, C, h, w), directions of the features of the frame and its edits.
        segments: int32 (H', W'), reduced.
        score: its highest raw scores; see `detection.frame_score`.
        share: of its pixels that reach the threshold, before it is taught.
        alarmed: whether its highest scores do.
        thumbnail: JPEG file.
    """

    name: str
    features: np.ndarray
    segments: np.ndarray
    score: float
    share: float
    alarmed: bool
    thumbnail: bytes

    @classmethod
    def of(cls, name: str, image: np.ndarray, found: Detection, threshold: float) -> Look:
        """What was found in an image, uint8 RGB (H, W, 3).

        Raises:
            UserError: features that have no grid.
        """
        if found.features is None:
            raise UserError(
                "a detector that sees images square by square (features.mode: squares) cannot be "
                "taught: choose a profile whose features see them whole"
            )
        step = max(1, int(np.sqrt(found.segments.size / _PIXELS)))
        return cls(
            name,
            found.features,
            found.segments[::step, ::step].copy(),
            frame_score(found.scores),
            float((found.heatmap >= threshold).mean()),
            found.score >= threshold,
            thumbnail(image),
        )

    @property
    def vectors(self) -> Tensor:
        """Of the frame itself, (h w, C) float32."""
        return torch.from_numpy(self.features[0]).float().flatten(1).T.contiguous()


Rescore = Callable[[Look, Distance], tuple[np.ndarray, float]]
"""The scores of a look by another distance, float32 (H', W'), and its level."""


class Teaching:
    """Makes one lesson of some nominal frames, piece by piece, so that others may go on meanwhile.

    The frames are parted into folds of neighbours. What each fold adds to the memory is chosen by
    itself, and the scores of its frames are those by a memory that knows the other folds alone: as
    the next frames will be scored, not as those that were learnt by heart.

    Args:
        looks: the frames, in the order in which they were taken.
        distance: as fitted.
        before: what it was taught already.
        rescore: see `Rescore`; `Detector.rescore`.
        most: vectors that the lesson may hold.
        accept_all: leave no frame out.

    Attributes:
        accepted: the frames that are taken.
        left_out: those on which an anomaly seems to stand; see `outlying`.
    """

    def __init__(
        self,
        looks: Sequence[Look],
        distance: Distance,
        before: Sequence[Taught],
        rescore: Rescore,
        *,
        most: int = MOST_OF_A_LESSON,
        accept_all: bool = False,
    ) -> None:
        if not looks:
            raise UserError("nothing to teach: no frame came")
        out = [False] * len(looks) if accept_all else outlying(looks)
        self.accepted = [look for look, is_out in zip(looks, out, strict=True) if not is_out]
        self.left_out = [look.name for look, is_out in zip(looks, out, strict=True) if is_out]
        self._distance, self._before, self._rescore = distance, list(before), rescore
        self._most = max(min(most, MOST_OF_A_LESSON), 0)
        self._pool = ScorePool()
        self._vectors: Tensor | None = None

    @property
    def count(self) -> int:
        """How many pieces of work there are."""
        folds = min(_FOLDS, len(self.accepted))
        return folds + (len(self.accepted) if self._scored else 0) + 1

    @property
    def _scored(self) -> bool:
        return len(self.accepted) >= FEW

    def work(self) -> Iterator[None]:
        """Does the work: one piece between two items."""
        known = self._distance.taught(self._before)
        folds = np.array_split(np.arange(len(self.accepted)), min(_FOLDS, len(self.accepted)))
        # So the memory of all folds but one is no larger than the one that is kept.
        share = -(-self._most // len(folds))
        chosen: list[Tensor] = []
        for fold in folds:
            vectors = torch.cat([self.accepted[i].vectors for i in fold])
            chosen.append(known.unknown(vectors, share).cpu())
            yield
        if self._scored:
            for number, fold in enumerate(folds):
                others = torch.cat([*chosen[:number], *chosen[number + 1 :]])
                taught = self._distance.taught([*self._before, Taught(others)])
                for i in fold:
                    self._pool.add(*self._rescore(self.accepted[i], taught))
                    yield
        self._vectors = known.unknown(torch.cat(chosen), self._most).cpu()
        yield

    def lesson(self, *, camera: str, asked_by: str) -> Lesson:
        """The lesson, once all work is done.

        Raises:
            UserError: all scores are alike.
        """
        assert self._vectors is not None
        step = -(-len(self.accepted) // _THUMBNAILS)
        return Lesson(
            "teach",
            in_bytes(torch.nn.functional.normalize(self._vectors, dim=1)),
            camera,
            asked_by,
            frames=len(self.accepted),
            left_out=tuple(self.left_out),
            about=f"{self.accepted[0].name} to {self.accepted[-1].name}",
            thumbnails=tuple(look.thumbnail for look in self.accepted[::step]),
            scores=NominalScores.of(self._pool) if self._scored else None,
        )


def outlying(looks: Sequence[Look]) -> list[bool]:
    """On which of the frames an anomaly seems to stand, as they score higher than the others do.

    On new terrain all frames raise alarms. So one is left out if its highest scores are over the
    median of all frames' by more than 1.25 of their spread (the median deviation from the median,
    scaled to that of a normal distribution), and raise an alarm. Of few frames none is left out.
    """
    if len(looks) < FEW:
        return [False] * len(looks)
    scores = np.array([look.score for look in looks])
    middle = float(np.median(scores))
    # The floor keeps frames of a robot at rest, which are all alike, from being told apart.
    spread = max(1.4826 * float(np.median(np.abs(scores - middle))), 0.05 * abs(middle))
    return [bool(look.alarmed and look.score > middle + _OUTLYING * spread) for look in looks]


@dataclass(frozen=True)
class Pointed:
    """What somebody pointed at in a frame.

    Attributes:
        region: bool (H, W), the pixels that are meant.
        cells: bool (h, w), the places of the feature grid that these are about.
    """

    region: np.ndarray
    cells: np.ndarray


def point_at(
    segments: np.ndarray, grid: tuple[int, int], row: int, column: int, *, touched: bool = False
) -> Pointed:
    """The segment under a pixel; where there is none, the place of the grid and those around it.

    Args:
        segments: int (H, W), 0 where there is none.
        grid: (h, w).
        touched: take each place that the segment touches; else those that it covers half of, or
            the one that it covers most of.

    Raises:
        UserError: the pixel is not in the frame.
    """
    height, width = segments.shape
    if not (0 <= row < height and 0 <= column < width):
        raise UserError(f"the point ({column}, {row}) is not in the frame of {width}x{height}")
    segment = segments[row, column]
    if segment == 0:
        cells = np.zeros(grid, bool)
        top, left = row * grid[0] // height, column * grid[1] // width
        cells[max(top - 1, 0) : top + 2, max(left - 1, 0) : left + 2] = True
        enlarged = cv2.resize(
            cells.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST
        )
        return Pointed(enlarged.astype(bool), cells)
    region = segments == segment
    share = cv2.resize(region.astype(np.float32), grid[::-1], interpolation=cv2.INTER_AREA)
    covered = share > 1e-6 if touched else share >= min(0.5, float(share.max()))
    return Pointed(region, covered)


def vectors_at(features: np.ndarray, cells: np.ndarray) -> Tensor:
    """The features of the frame at some places of its grid, as a lesson holds them: int8 (N, C).

    Args:
        features: see `Look`.
        cells: bool (h, w).
    """
    vectors = torch.from_numpy(features[0]).float()[:, torch.from_numpy(cells)].T
    return in_bytes(torch.nn.functional.normalize(vectors, dim=1))


def thumbnail(image: np.ndarray, region: np.ndarray | None = None) -> bytes:
    """A small JPEG file of an image, uint8 RGB (H, W, 3), with a region, bool (H, W), outlined."""
    height = max(1, round(image.shape[0] * _THUMBNAIL / image.shape[1]))
    small = cv2.resize(image, (_THUMBNAIL, height), interpolation=cv2.INTER_AREA)
    if region is not None:
        mask = cv2.resize(region.astype(np.uint8), (_THUMBNAIL, height))
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(small, outlines, -1, (255, 255, 0), 1)
    return encode_jpeg(small, 80)
