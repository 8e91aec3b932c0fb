"""What a distance of features is, how it is fitted to nominal images, and the distances by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.runtime.parts import PartRegistry

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Taught:
    """Feature vectors that somebody called nominal, or anomalous, after the distance was fitted.

    Attributes:
        vectors: (N, C) of any lengths but 0.
        nominal: whether they are.
        shown: whether a person pointed at just these. Then each counts by itself, while of vectors
            that came along several must agree.
    """

    vectors: Tensor
    nominal: bool = True
    shown: bool = False


class Distance(ABC):
    """Compares features, then sums up what an upsampler made of the comparisons.

    The base sums up maps that are one for each edit, and has learnt nothing.

    Attributes:
        full_resolution: whether the image is seen as the camera gave it, or as small as its edits,
            so that detail that only the image has does not count as a change. A profile may say
            otherwise (`DistanceSettings.compared_with`).
        frame_level: share of a frame's level that is taken off its scores; see `calibration.level`.
    """

    full_resolution: ClassVar[bool] = False
    frame_level: float = 0.0

    def strength(self, features: Tensor) -> Tensor:
        """How strongly each place needs an edit, told before there is one: (B, h, w) in [0, 1].

        Asked where the settings guide edits (`DistanceSettings.guides_edits`); see `Editor.edit`.

        Args:
            features: of the images as the camera gave them, (B, C, h, w).
        """
        raise NotImplementedError

    @abstractmethod
    def __call__(self, original: Tensor, edits: Tensor) -> Tensor:
        """Features (1, C, h, w) and (K, C, h, w) -> M maps (M, h, w) float32, to be enlarged."""

    def anomaly(self, maps: Tensor) -> Tensor:
        """The M maps at any size (M, H, W) -> one distance a pixel (H, W), at least 0."""
        return maps.mean(0)

    def spread(self, maps: Tensor) -> Tensor:
        """The M maps (M, H, W) -> standard deviation of the edits' distances (H, W), 0 for one."""
        # Tensor.std takes some 40 times as long over two maps.
        return (maps - maps.mean(0)).square_().mean(0).sqrt_()

    def unknown(self, vectors: Tensor, most: int) -> Tensor:
        """Those of some feature vectors (N, C) that say what it does not know yet: (n, C).

        Args:
            most: of them; where that is too few, each stands for more of the others.

        Raises:
            UserError: it cannot be taught.
        """
        raise self._unteachable()

    def taught(self, lessons: Sequence[Taught]) -> Distance:
        """The same with what was taught in place of what it was taught before, oldest first.

        Raises:
            UserError: it cannot be taught.
            ValueError: features of another space.
        """
        if not lessons:
            return self
        raise self._unteachable()

    def taught_share(self, features: Tensor) -> float:
        """The share of places that are more like what was taught as nominal than like the rest.

        Args:
            features: of one image, (1, C, h, w).
        """
        return 0.0

    def _unteachable(self) -> UserError:
        return UserError(
            f"{type(self).__name__} has no memory that could be taught: choose a profile whose "
            "distance is novelty"
        )

    def to(self, device: torch.device | str) -> Distance:
        """The same on another device."""
        return self

    def tensors(self) -> dict[str, Tensor]:
        """What it learnt, for a calibration's file; `DistanceSettings.build` takes it back."""
        return {}


class NominalImages(Protocol):
    """Nominal images, as a distance may look at them while it is fitted."""

    def compare(self, distance: Distance) -> None:
        """Calls ``distance`` with the features of every image and of its edits."""
        ...

    def sample(self, count: int, lights: int = 0) -> Tensor:
        """Up to ``count`` feature vectors (N, C) float32, every position equally likely.

        Args:
            lights: in how many other lights each image is seen besides its own.
        """
        ...


@dataclass(frozen=True)
class DistanceSettings(ABC):
    """The settings of one distance; a subclass registers itself in `DISTANCES`.

    A distance that is fitted collects something from nominal images, and is made of what was
    collected from one or more sets of them. So the scores of an image can come from a distance
    that has not seen it.

    Attributes:
        fitted: whether it needs nominal images, and so a calibration.
        collects_edits: whether `collect` looks at edits, which take far longer than features.
        compared_with: what edits are compared with: the camera's ``image``, or ``model_input``,
            the image as small as the edits; None: what suits the distance.
    """

    fitted: ClassVar[bool] = False
    collects_edits: ClassVar[bool] = False

    compared_with: Literal["image", "model_input"] | None = field(default=None, kw_only=True)

    @property
    def lights(self) -> int:
        """In how many other lights `collect` sees each image besides its own."""
        return 0

    @property
    def guides_edits(self) -> bool:
        """Whether edits are local, as strong in each place as `Distance.strength` tells."""
        return False

    @abstractmethod
    def build(self, learnt: Tensors) -> Distance:
        """The distance, given what `Distance.tensors` returned; empty if it is not fitted.

        Raises:
            KeyError, ValueError: tensors of another distance, or damaged ones.
        """

    def collect(self, images: NominalImages, sets: int) -> Tensors:
        """What images say, of any tensors.

        Args:
            sets: into how many sets of about the same size all images are parted.
        """
        raise NotImplementedError

    def collect_key(self) -> Mapping[str, object]:
        """The settings that `collect` depends on, for the key of a cache."""
        return {}

    def fit(self, collected: Sequence[Tensors]) -> Distance:
        """The distance of what `collect` returned for some sets of images.

        Raises:
            UserError: it cannot be made of them.
        """
        raise NotImplementedError


DISTANCES: PartRegistry[DistanceSettings] = PartRegistry(
    "distance", "anomaly_detector_ros.distances"
)
