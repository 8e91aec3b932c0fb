"""MobileSAM: a predictor that holds an image, and its mask generator."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.runtime.devices import choose_dtype
from anomaly_detector_ros.runtime.inference import precision, ready
from anomaly_detector_ros.segmentation.anything import (
    AnythingSettings,
    AutomaticSegmenter,
    PointMasks,
    PromptedSegmenter,
    make_generator,
    prompts_at_once,
    stability,
)
from anomaly_detector_ros.segmentation.base import SEGMENTERS, Segmenter
from anomaly_detector_ros.segmentation.mobile_sam_network import (
    STRIDE,
    MobileSamNetwork,
    load_mobile_sam,
)
from anomaly_detector_ros.weights.loading import Loader

if TYPE_CHECKING:
    from segment_anything import SamAutomaticMaskGenerator

_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
_STD = np.array([58.395, 57.12, 57.375], np.float32)


@SEGMENTERS.register("mobile_sam")
@dataclass(frozen=True, kw_only=True)
class MobileSam(AnythingSettings):
    """MobileSAM, whose weights are the registry's.

    Attributes:
        longest_side: pixels at which the network sees an image; it was trained with 1024.
        dtype: of the network's products; see `runtime.devices.choose_dtype`.
    """

    mode: Literal["automatic", "prompted"] = "prompted"
    longest_side: Annotated[int, Ge(64), Le(2048)] = 1024
    dtype: str = "auto"

    def weights_used(self) -> tuple[str, ...]:
        """See `Weighted`."""
        return ("mobile_sam",)

    def build(self, loader: Loader) -> Segmenter:
        """See `SegmenterSettings`"""
        files = sorted(loader.files("mobile_sam"), key=lambda file: "encoder" not in file.name)
        if len(files) != 2:
            names = ", ".join(file.name for file in files)
            raise UserError(f"model mobile_sam: files {names}: expected an encoder and a decoder")
        predictor = MobileSamPredictor(
            load_mobile_sam(*files),
            longest_side=self.longest_side,
            device=loader.device,
            dtype=choose_dtype(self.dtype, loader.device),
        )
        if self.mode == "prompted":
            return PromptedSegmenter(predictor, self)
        return AutomaticSegmenter(mobile_sam_generator(predictor, self), self)


class MobileSamPredictor:
    """Masks for points of one image: ``set_image`` encodes it, ``predict_points`` decodes masks.

    SAM pads every image to a square. Here the encoder sees the image alone, and the decoder that
    part of the square's positions which the image covers.

    Args:
        network: its weights; it is made `ready` here.
        longest_side: pixels at which the network sees an image.
        device: where it runs.
        dtype: of the products and convolutions of encoder and decoder.
    """

    def __init__(
        self,
        network: MobileSamNetwork,
        *,
        longest_side: int = 1024,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._device, self._dtype = torch.device(device), dtype
        self._cells = max(1, round(longest_side / STRIDE))
        self._batch = prompts_at_once(self._device)
        self._network = ready(network, device, dtype)
        network.prompt_encoder.input_image_size = (self._cells * STRIDE,) * 2
        self._embedding: Tensor | None = None
        self._positions: Tensor | None = None
        self._size = (0, 0)

    @torch.inference_mode()
    def set_image(self, image: np.ndarray) -> None:
        """Encode an image, uint8 RGB (H, W, 3); later points refer to it."""
        height, width = self._size = image.shape[:2]
        scale = self._cells / max(height, width)
        grid = max(1, round(height * scale)), max(1, round(width * scale))
        pixels = torch.from_numpy(encoder_input(image, grid)).to(self._device)
        with precision(self._device, self._dtype):
            self._embedding = self._network.image_encoder(pixels).float()
        self._network.prompt_encoder.image_embedding_size = grid
        self._positions = self._network.positions(grid, self._cells)

    def predict_points(self, points: np.ndarray) -> PointMasks:
        """One mask for each point, (N, 2) x, y in pixels of the image, at the image's size.

        It is the best rated of SAM's three candidates (whole, part, sub-part).

        Raises:
            RuntimeError: no image was set.
        """
        count = len(points)
        out = PointMasks(
            np.zeros((count, *self._size), bool),
            np.zeros(count, np.float32),
            np.zeros(count, np.float32),
        )
        for start in range(0, count, self._batch):
            part = slice(start, min(start + self._batch, count))
            logits, quality = self.predict_logits(points[part])
            out.masks[part] = logits > 0.0
            out.quality[part] = quality
            out.stability[part] = stability(logits)
        return out

    @torch.inference_mode()
    def predict_logits(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits float32 (N, H, W) and quality (N,) for points (N, 2), decoded all at once.

        Raises:
            RuntimeError: no image was set.
        """
        if self._embedding is None:
            raise RuntimeError("set_image comes first")
        height, width = self._size
        rows, columns = self._embedding.shape[-2:]
        scale = np.array([columns * STRIDE / width, rows * STRIDE / height], np.float32)
        # SAM adds half of its own pixel.
        places = torch.from_numpy((np.asarray(points, np.float32) + 0.5) * scale - 0.5)
        labels = torch.ones(len(points), 1, device=self._device)
        sparse, dense = self._network.prompt_encoder(
            points=(places[:, None].to(self._device), labels), boxes=None, masks=None
        )
        with precision(self._device, self._dtype):
            masks, quality = self._network.mask_decoder(
                image_embeddings=self._embedding,
                image_pe=self._positions,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
        quality, best = quality.float().max(1)
        chosen = masks[torch.arange(len(best), device=self._device), best].float()
        logits = F.interpolate(chosen[:, None], self._size, mode="bilinear", align_corners=False)
        return logits[:, 0].cpu().numpy(), quality.cpu().numpy()


def mobile_sam_generator(
    predictor: MobileSamPredictor, settings: MobileSam
) -> SamAutomaticMaskGenerator:
    """Segment Anything's mask generator over MobileSAM.

    One mask a prompt is considered, the best rated, where SAM's own network gives three.
    """
    encoder = SimpleNamespace(img_size=settings.longest_side)
    model = SimpleNamespace(image_encoder=encoder, mask_threshold=0.0)
    generator = make_generator(
        model, settings, points_per_batch=prompts_at_once(_GridPredictor.device)
    )
    generator.predictor = _GridPredictor(predictor, model)
    return generator


class _GridPredictor:
    """What Segment Anything's generator asks of a ``SamPredictor``, answered by MobileSAM."""

    device = torch.device("cpu")  # where the generator filters masks

    def __init__(self, predictor: MobileSamPredictor, model: SimpleNamespace) -> None:
        self._predictor = predictor
        self.model = model
        # Points stay in pixels of the image: MobileSamPredictor scales them itself.
        self.transform = SimpleNamespace(apply_coords=lambda points, size: points)
        self.set_image = predictor.set_image

    def predict_torch(
        self, points: Tensor, labels: Tensor, multimask_output: bool, return_logits: bool
    ) -> tuple[Tensor, Tensor, None]:
        """Logits (N, 1, H, W) and quality (N, 1) for points (N, 1, 2), whatever the options."""
        logits, quality = self._predictor.predict_logits(points[:, 0].numpy())
        return torch.from_numpy(logits)[:, None], torch.from_numpy(quality)[:, None], None

    def reset_image(self) -> None:
        """Nothing to do: the next image replaces this one."""


def encoder_input(image: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """uint8 RGB (H, W, 3) -> float32 (1, 3, h, w), with SAM's mean and deviation.

    Args:
        grid: cells of `STRIDE` pixels to h and w.
    """
    height, width = (cells * STRIDE for cells in grid)
    shrink = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_LINEAR
    resized = cv2.resize(image, (width, height), interpolation=shrink)
    normalised = (resized.astype(np.float32) - _MEAN) / _STD
    return np.ascontiguousarray(normalised.transpose(2, 0, 1)[None])
