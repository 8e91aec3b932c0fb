"""Feature spaces by name: where input and edit are compared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge

from anomaly_detector_ros.features.networks import FeatureExtractor
from anomaly_detector_ros.features.tiling import Squares, TiledFeatures
from anomaly_detector_ros.runtime.devices import choose_dtype
from anomaly_detector_ros.runtime.parts import PartRegistry
from anomaly_detector_ros.weights.loading import RANDOM, Loader, Weighted

Size = tuple[int, int]
TILE_SIZE = 224


@dataclass(frozen=True, kw_only=True)
class FeatureSettings(Weighted, ABC):
    """The settings of one feature space; a subclass registers itself in `FEATURES`.

    Attributes:
        mode: images are seen whole; in tiles whose features are put together before they are
            compared (`tiling.TiledFeatures`); or in squares that are compared each by itself, as
            the paper's are (`tiling.Squares`).
        tile_size: side of a tile in pixels, 224 by default.
        input_size: (height, width) at which images are seen, or the shorter side alone; by default
            what suits the network.
    """

    mode: Literal["whole", "tiles", "squares"] = "whole"
    tile_size: Annotated[int, Ge(1)] | None = None
    input_size: int | Size | None = None

    def __post_init__(self) -> None:
        """Refuses a size of tiles without tiles."""
        if self.mode == "whole" and self.tile_size is not None:
            raise ValueError("tile_size: only with `mode: tiles` or `mode: squares`")

    def build(self, loader: Loader) -> FeatureExtractor:
        """The extractor of images; in mode ``squares`` too their tiles' features put together.

        Raises:
            UserError: sizes that don't fit the network, or weights that cannot be had.
        """
        if self.mode == "whole":
            return self.extractor(loader, self.input_size)
        side = self.tile_size or TILE_SIZE
        extractor = self.extractor(loader, (side, side))
        return TiledFeatures(extractor, tile_size=side, input_size=self.input_size)

    @property
    def trained_upsampler(self) -> str | None:
        """The registry's FeatUp upsampler that was trained for these features, where one was."""
        return None

    def squares(self) -> Squares | None:
        """How images are cut before they are compared; None where they are compared whole.

        Raises:
            UserError: sizes that don't fit together.
        """
        if self.mode != "squares":
            return None
        side = self.tile_size or TILE_SIZE
        return Squares(side, side if self.input_size is None else self.input_size)

    def of_one_view(self) -> FeatureSettings:
        """The settings for what is compared at once: one of the `squares`, or a whole image."""
        if self.mode != "squares":
            return self
        side = self.tile_size or TILE_SIZE
        return replace(self, mode="whole", tile_size=None, input_size=(side, side))

    @abstractmethod
    def extractor(self, loader: Loader, input_size: int | Size | None) -> FeatureExtractor:
        """What sees whole images, or one tile at a time, at ``input_size``; None: its own."""


FEATURES: PartRegistry[FeatureSettings] = PartRegistry("features", "anomaly_detector_ros.features")


@dataclass(frozen=True, kw_only=True)
class NetworkSettings(FeatureSettings):
    """The settings of a feature space that a network makes.

    Attributes:
        dtype: precision of the matrix products; "auto" is what the device is good at.
        weights: a file's path, with a slash in it, a model of the registry, or "random"; by
            default the publisher's.
        seed: of random weights.
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    weights: str | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuses a seed without use."""
        super().__post_init__()
        if self.seed is not None and self.weights != RANDOM:
            raise ValueError("seed: only with `weights: random`")

    def random_weights(self) -> Mapping[str, str]:
        """See `Weighted`."""
        return {"weights": RANDOM}

    def weights_used(self) -> tuple[str, ...]:
        """See `Weighted`."""
        return () if self.weights in (None, RANDOM) else (str(self.weights),)

    def extractor(self, loader: Loader, input_size: int | Size | None) -> FeatureExtractor:
        """See `FeatureSettings`."""
        size = {} if input_size is None else {"input_size": input_size}
        where = {"device": loader.device, "dtype": choose_dtype(self.dtype, loader.device)}
        if self.weights == RANDOM:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed or 0)
                return self.network(None, **size, **where)
        used = self.weights_used()
        file = loader.file(*used) if used else self.published(loader)
        return self.network(file, **size, **where)

    @abstractmethod
    def network(self, weights: Path | None, **options: Any) -> FeatureExtractor:
        """The extractor with weights from a file, or random ones.

        Args:
            options: ``device``, ``dtype`` and, unless it is the network's own, ``input_size``.
        """
