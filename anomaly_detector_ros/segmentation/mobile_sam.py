"""MobileSAM through ONNX Runtime: a predictor that holds an image, and its mask generator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.runtime.onnx_session import open_session
from anomaly_detector_ros.segmentation.anything import (
    AnythingSettings,
    AutomaticSegmenter,
    PointMasks,
    PromptedSegmenter,
    make_generator,
    stability,
)
from anomaly_detector_ros.segmentation.base import SEGMENTERS, Segmenter
from anomaly_detector_ros.weights.loading import Loader

if TYPE_CHECKING:
    from segment_anything import SamAutomaticMaskGenerator

_SIDE = 1024  # of the encoder's input
_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
_STD = np.array([58.395, 57.12, 57.375], np.float32)
# Prompts decoded in one run of the decoder. More are hardly faster on a CPU and take more memory.
_BATCH = 4


@SEGMENTERS.register("mobile_sam")
@dataclass(frozen=True, kw_only=True)
class MobileSam(AnythingSettings):
    """MobileSAM, whose weights are the registry's."""

    mode: Literal["automatic", "prompted"] = "prompted"

    def weights_used(self) -> tuple[str, ...]:
        """See `Weighted`."""
        return ("mobile_sam",)

    def build(self, loader: Loader) -> Segmenter:
        """See `SegmenterSettings`."""
        files = sorted(loader.files("mobile_sam"), key=lambda file: "encoder" not in file.name)
        if len(files) != 2:
            names = ", ".join(file.name for file in files)
            raise UserError(f"model mobile_sam: files {names}: expected an encoder and a decoder")
        predictor = MobileSamPredictor(*files, device=loader.device)
        if self.mode == "prompted":
            return PromptedSegmenter(predictor, self)
        return AutomaticSegmenter(mobile_sam_generator(predictor, self), self)


class MobileSamPredictor:
    """Masks for points of one image: ``set_image`` encodes it, ``predict_points`` decodes masks.

    Args:
        encoder: ONNX, (B, 3, 1024, 1024) -> (1, 256, 64, 64).
        decoder: SAM's standard ONNX decoder, giving one mask a prompt.
        device: "cuda" runs both on the GPU where this ONNX Runtime can, else on the CPU.

    Raises:
        UserError: a file is missing or not such a network.
    """

    def __init__(self, encoder: Path, decoder: Path, *, device: torch.device | str = "cpu") -> None:
        # The decoder is declared for one prompt only, yet its graph broadcasts over prompts.
        prompts = ("point_coords", "point_labels")
        self._encoder = open_session(Path(encoder), model="mobile_sam", device=device)
        self._decoder = open_session(
            Path(decoder), model="mobile_sam", device=device, batched=prompts
        )
        names = {item.name for item in self._decoder.get_inputs()}
        missing = {"image_embeddings", *prompts, "orig_im_size"} - names
        if missing or len(self._encoder.get_inputs()) != 1:
            raise UserError(f"{encoder}, {decoder}: not MobileSAM's encoder and decoder")
        self._embedding: np.ndarray | None = None
        self._size = (0, 0)

    def set_image(self, image: np.ndarray) -> None:
        """Encode an image, uint8 RGB (H, W, 3); later points refer to it."""
        name = self._encoder.get_inputs()[0].name
        (self._embedding,) = self._encoder.run(None, {name: encoder_input(image)})
        self._size = image.shape[:2]

    def predict_points(self, points: np.ndarray) -> PointMasks:
        """One mask for each point, (N, 2) x, y in pixels of the image, at the image's size.

        Of SAM's three candidates (whole, part, sub-part) the decoder returns the best rated.

        Raises:
            RuntimeError: no image was set.
        """
        count = len(points)
        out = PointMasks(
            np.zeros((count, *self._size), bool),
            np.zeros(count, np.float32),
            np.zeros(count, np.float32),
        )
        for start in range(0, count, _BATCH):
            part = slice(start, min(start + _BATCH, count))
            logits, quality = self.predict_logits(points[part])
            out.masks[part] = logits > 0.0
            out.quality[part] = quality
            out.stability[part] = stability(logits)
        return out

    def predict_logits(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits float32 (N, H, W) and quality (N,) for points (N, 2), decoded all at once.

        Raises:
            RuntimeError: no image was set.
        """
        if self._embedding is None:
            raise RuntimeError("set_image comes first")
        coords = np.zeros((len(points), 2, 2), np.float32)
        coords[:, 0] = np.asarray(points, np.float32) * (_SIDE / max(self._size))
        # The decoder wants a padding point, labelled -1, where there is no box.
        labels = np.tile(np.array([1.0, -1.0], np.float32), (len(points), 1))
        masks, quality = self._decoder.run(
            ["masks", "iou_predictions"],
            {
                "image_embeddings": self._embedding,
                "point_coords": coords,
                "point_labels": labels,
                "mask_input": np.zeros((1, 1, 256, 256), np.float32),
                "has_mask_input": np.zeros(1, np.float32),
                "orig_im_size": np.array(self._size, np.float32),
            },
        )
        return masks[:, 0], quality[:, 0]


def mobile_sam_generator(
    predictor: MobileSamPredictor, settings: AnythingSettings
) -> SamAutomaticMaskGenerator:
    """Segment Anything's mask generator over MobileSAM.

    One mask a prompt is considered, the best rated, where SAM's own network gives three.
    """
    encoder = SimpleNamespace(img_size=_SIDE)
    model = SimpleNamespace(image_encoder=encoder, mask_threshold=0.0)
    generator = make_generator(model, settings, points_per_batch=_BATCH)
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


def encoder_input(image: np.ndarray) -> np.ndarray:
    """uint8 RGB (H, W, 3) -> float32 (1, 3, 1024, 1024), the longest side 1024.

    Normalised with SAM's mean and deviation first, then padded with zeros right and below, as
    segment-anything does.
    """
    height, width = image.shape[:2]
    scale = _SIDE / max(height, width)
    size = (max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5)))
    shrink = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(image, size, interpolation=shrink)
    pixels = np.zeros((1, 3, _SIDE, _SIDE), np.float32)
    normalised = (resized.astype(np.float32) - _MEAN) / _STD
    pixels[0, :, : size[1], : size[0]] = normalised.transpose(2, 0, 1)
    return pixels
