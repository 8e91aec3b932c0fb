"""Segment Anything (ViT-H, ViT-L, ViT-B) through the official package."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.runtime.devices import choose_dtype
from anomaly_detector_ros.segmentation.anything import (
    AnythingSettings,
    AutomaticSegmenter,
    PointMasks,
    PromptedSegmenter,
    make_generator,
    prompts_at_once,
)
from anomaly_detector_ros.segmentation.base import SEGMENTERS, Segmenter
from anomaly_detector_ros.weights.loading import RANDOM, Loader

if TYPE_CHECKING:
    from segment_anything import SamAutomaticMaskGenerator
    from segment_anything.modeling import Sam as Network


@SEGMENTERS.register("sam")
@dataclass(frozen=True, kw_only=True)
class Sam(AnythingSettings):
    """Segment Anything.

    Attributes:
        model: which of its networks.
        weights: a ``.pth`` file's path, with a slash in it, a model of the registry, or "random";
            by default the registry's of that network.
        seed: of random weights.
    """

    mode: Literal["automatic", "prompted"] = "automatic"
    model: Literal["vit_h", "vit_l", "vit_b"] = "vit_h"
    weights: str | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuses a seed without use."""
        super().__post_init__()
        if self.seed is not None and self.weights != RANDOM:
            raise ValueError("seed: only with 'weights: random'")

    def random_weights(self) -> Mapping[str, str]:
        """See `Weighted`."""
        return {"weights": RANDOM}

    def weights_used(self) -> tuple[str, ...]:
        """See `Weighted`."""
        weights = self.weights or f"sam_{self.model}"
        return () if weights == RANDOM else (weights,)

    def build(self, loader: Loader) -> Segmenter:
        """See `SegmenterSettings`."""
        used = self.weights_used()
        if used:
            sam = load_sam(self.model, loader.file(*used), device=loader.device)
        else:
            sam = random_sam(self.model, self.seed or 0, device=loader.device)
        if self.mode == "prompted":
            return PromptedSegmenter(SamPointPredictor(sam), self)
        return AutomaticSegmenter(sam_generator(sam, self), self)


def load_sam(model: str, weights: Path, *, device: torch.device | str = "cpu") -> Network:
    """A Segment Anything network with published weights.

    Args:
        model: ``vit_h``, ``vit_l`` or ``vit_b``.
        weights: a ``.pth`` file of this model's parameters, as Segment Anything publishes them.
        device: where it runs.

    Raises:
        UserError: a file that is missing, damaged or another model's.
    """
    sam = _build(model)
    try:
        # Never the package's own loading: it would execute a pickle.
        sam.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise UserError(f"{weights}: no such file: name a .pth file of SAM {model}") from None
    except (OSError, EOFError, RuntimeError, TypeError, pickle.UnpicklingError) as error:
        detail = one_line(error, 200)
        raise UserError(
            f"{weights}: not the weights of SAM {model}: fetch them again ({detail})"
        ) from None
    return sam.to(device)


def random_sam(model: str, seed: int = 0, *, device: torch.device | str = "cpu") -> Network:
    """The same network with random weights, for timing and tests."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _build(model).to(device)


def _build(model: str) -> Network:
    from segment_anything import sam_model_registry

    return sam_model_registry[model](checkpoint=None)


def sam_generator(sam: Network, settings: AnythingSettings) -> SamAutomaticMaskGenerator:
    """Segment Anything's own mask generator, with as large batches as suit the device."""
    return make_generator(sam, settings, points_per_batch=prompts_at_once(sam.device))


class SamPointPredictor:
    """Masks for points of one image: ``set_image`` encodes it, ``predict_points`` decodes masks."""

    def __init__(self, sam: Network) -> None:
        from segment_anything import SamPredictor

        self._predictor = SamPredictor(sam)
        self._batch = prompts_at_once(sam.device)
        self._dtype = choose_dtype("auto", sam.device)

    def set_image(self, image: np.ndarray) -> None:
        """Encode an image, uint8 RGB (H, W, 3); later points refer to it."""
        device = self._predictor.device
        with torch.autocast(device.type, self._dtype, enabled=device.type == "cuda"):
            self._predictor.set_image(image)
        self._predictor.features = self._predictor.features.float()

    def predict_points(self, points: np.ndarray) -> PointMasks:
        """The best rated of SAM's three masks for each point, (N, 2) x, y in pixels.

        Raises:
            RuntimeError: no image was set.
        """
        if not self._predictor.is_image_set:
            raise RuntimeError("set_image comes first")
        size = self._predictor.original_size
        coordinates = self._predictor.transform.apply_coords(np.array(points, np.float32), size)
        found = [
            self._decode(coordinates[start : start + self._batch])
            for start in range(0, len(points), self._batch)
        ]
        if not found:
            empty = np.zeros(0, np.float32)
            return PointMasks(np.zeros((0, *size), bool), empty, empty)
        return PointMasks(*(np.concatenate(parts) for parts in zip(*found, strict=True)))

    @torch.inference_mode()
    def _decode(self, coordinates: np.ndarray) -> PointMasks:
        """Masks for points (N, 2) in the network's pixels, all in one batch."""
        device = self._predictor.device
        points = torch.as_tensor(coordinates, dtype=torch.float32, device=device)[:, None]
        labels = torch.ones(points.shape[:2], dtype=torch.int, device=device)
        logits, quality, _ = self._predictor.predict_torch(
            points, labels, multimask_output=True, return_logits=True
        )
        quality, best = quality.max(1)
        chosen = logits[torch.arange(len(best), device=device), best]
        inner, outer = ((chosen > level).flatten(1).sum(1) for level in (1.0, -1.0))
        stable = inner / outer.clamp_min(1)
        return PointMasks(*(each.cpu().numpy() for each in (chosen > 0.0, quality, stable)))
