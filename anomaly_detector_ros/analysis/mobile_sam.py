"""MobileSAM through ONNX Runtime: a predictor that holds an image, and a segmenter over it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import torch

from anomaly_detector_ros.analysis.prompts import anomaly_peaks
from anomaly_detector_ros.analysis.superpixels import SuperpixelSegmenter
from anomaly_detector_ros.errors import UserError, one_line

if TYPE_CHECKING:
    import onnxruntime

_SIDE = 1024  # of the encoder's input
_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
_STD = np.array([58.395, 57.12, 57.375], np.float32)
# Prompts decoded in one run of the decoder. More are hardly faster on a CPU and take more memory.
_BATCH = 4


class PointMasks(NamedTuple):
    """Masks for N points."""

    masks: np.ndarray  # bool (N, H, W)
    quality: np.ndarray  # float32 (N,): the network's estimate of each mask's IoU, about [0, 1]
    stability: np.ndarray  # float32 (N,): IoU of the masks cut at logit 1 and -1, [0, 1]


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
        self._encoder = _session(Path(encoder), device, batched=())
        self._decoder = _session(Path(decoder), device, batched=("point_coords", "point_labels"))
        names = {item.name for item in self._decoder.get_inputs()}
        missing = {"image_embeddings", "point_coords", "point_labels", "orig_im_size"} - names
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
        if self._embedding is None:
            raise RuntimeError("set_image comes first")
        count = len(points)
        out = PointMasks(
            np.zeros((count, *self._size), bool),
            np.zeros(count, np.float32),
            np.zeros(count, np.float32),
        )
        for start in range(0, count, _BATCH):
            part = slice(start, min(start + _BATCH, count))
            logits, quality = self._decode(np.asarray(points[part], np.float32))
            out.masks[part] = logits > 0.0
            out.quality[part] = quality
            out.stability[part] = _stability(logits)
        return out

    def _decode(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits float32 (N, H, W) and quality (N,) for points (N, 2)."""
        coords = np.zeros((len(points), 2, 2), np.float32)
        coords[:, 0] = points * (_SIDE / max(self._size))
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


class MobileSamSegmenter:
    """Segments around the peaks of an anomaly map, superpixels elsewhere.

    Without the superpixels most of an image stays uncovered, and its raw values are not
    comparable with the averages of the segments (nor are zeros).

    Args:
        encoder: see ``MobileSamPredictor``.
        decoder: see ``MobileSamPredictor``.
        max_prompts: peaks prompted at most; each costs one decoder pass.
        min_distance: between peaks, as a fraction of the image's longer side.
        peak_floor: how far above the map's median a peak must rise, as a fraction of
            (maximum - median).
        min_quality: masks that the network itself rates lower are dropped, [0, 1].
        min_stability: masks that move more with the threshold are dropped, [0, 1].
        min_area_fraction: masks smaller than this share of the image are dropped.
        max_area_fraction: larger ones, too (sky, the whole ground).
        superpixels: about how many superpixels cover what the masks leave; 0 leaves it uncovered.
        device: see ``MobileSamPredictor``.
    """

    def __init__(
        self,
        encoder: Path,
        decoder: Path,
        *,
        max_prompts: int = 16,
        min_distance: float = 0.03,
        peak_floor: float = 0.2,
        min_quality: float = 0.7,
        min_stability: float = 0.8,
        min_area_fraction: float = 0.001,
        max_area_fraction: float = 0.25,
        superpixels: int = 400,
        device: torch.device | str = "cpu",
    ) -> None:
        if max_prompts < 1 or not 0 < min_distance < 1:
            raise UserError(
                f"mobile_sam: max_prompts {max_prompts}, min_distance {min_distance}: "
                "take max_prompts >= 1 and min_distance between 0 and 1"
            )
        self.predictor = MobileSamPredictor(encoder, decoder, device=device)
        self.max_prompts = max_prompts
        self.min_distance = min_distance
        self.peak_floor = peak_floor
        self.min_quality = min_quality
        self.min_stability = min_stability
        self.area_range = (min_area_fraction, max_area_fraction)
        self.superpixels = SuperpixelSegmenter(superpixels) if superpixels else None

    def segment(self, image: np.ndarray, anomaly_map: np.ndarray) -> np.ndarray:
        """uint8 RGB (H, W, 3) and float (H, W) -> int32 (H, W): ids 1..N, 0 = none."""
        segments = self._around_peaks(image, anomaly_map)
        if self.superpixels is None:
            return segments
        rest = self.superpixels.segment(image) + segments.max()
        return np.where(segments > 0, segments, rest)

    def _around_peaks(self, image: np.ndarray, anomaly_map: np.ndarray) -> np.ndarray:
        points = anomaly_peaks(
            anomaly_map,
            max_prompts=self.max_prompts,
            min_distance=self.min_distance,
            floor=self.peak_floor,
        )
        if len(points) == 0:  # the encoder's pass is the costly one
            return np.zeros(image.shape[:2], np.int32)
        self.predictor.set_image(image)
        found = self.predictor.predict_points(points)
        good = (found.quality >= self.min_quality) & (found.stability >= self.min_stability)
        return disjoint_segments(found.masks[good], self.area_range)


def disjoint_segments(
    masks: np.ndarray, area_range: tuple[float, float] = (0.0, 1.0)
) -> np.ndarray:
    """Overlapping masks, bool (N, H, W), as one int32 (H, W) image of ids 1..n, 0 = none.

    Where masks overlap, the smaller wins: a person before a building keeps their own segment,
    whereas a larger mask on top would average their score away with everything behind them.
    Masks whose share of the image is outside ``area_range``, as they come or by what smaller ones
    leave of them, are dropped.
    """
    segments = np.zeros(masks.shape[1:], np.int32)
    if len(masks) == 0:
        return segments
    low, high = (fraction * segments.size for fraction in area_range)
    areas = masks.reshape(len(masks), -1).sum(1)
    for index in np.argsort(-areas, kind="stable"):
        if low <= areas[index] <= high:
            segments[masks[index]] = index + 1
    return _renumber(segments, low)


def _renumber(segments: np.ndarray, min_area: float) -> np.ndarray:
    """Ids 1..n without gaps, in the order of the old ones; smaller segments become 0."""
    counts = np.bincount(segments.ravel())
    keep = counts >= max(min_area, 1)
    keep[0] = False
    new = np.cumsum(keep, dtype=np.int32) * keep
    return new.astype(np.int32)[segments]


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


def _stability(logits: np.ndarray) -> np.ndarray:
    inner = np.count_nonzero(logits > 1.0, axis=(1, 2))
    outer = np.count_nonzero(logits > -1.0, axis=(1, 2))
    return (inner / np.maximum(outer, 1)).astype(np.float32)


def _session(
    path: Path, device: torch.device | str, batched: tuple[str, ...]
) -> onnxruntime.InferenceSession:
    """A session whose ``batched`` inputs take any first dimension.

    SAM's decoder is declared for one prompt only, yet its graph broadcasts over prompts.
    """
    import onnx
    import onnxruntime
    from google.protobuf.message import DecodeError
    from onnxruntime.capi import onnxruntime_pybind11_state as failures

    if not path.is_file():
        raise UserError(f"{path}: no such file: run anomaly-detector models fetch mobile_sam")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _available_cores()
    options.log_severity_level = 3
    providers: list[Any] = ["CPUExecutionProvider"]
    if torch.device(device).type == "cuda":
        have = onnxruntime.get_available_providers()
        if "CUDAExecutionProvider" in have:
            index = torch.device(device).index or 0
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": index}))
    try:
        source: str | bytes = str(path)
        if batched:
            model = onnx.load(source)
            for item in model.graph.input:
                if item.name in batched:
                    item.type.tensor_type.shape.dim[0].dim_param = "prompts"
            source = model.SerializeToString()
        return onnxruntime.InferenceSession(source, options, providers=providers)
    except (
        DecodeError,
        failures.Fail,
        failures.InvalidGraph,
        failures.InvalidProtobuf,
        failures.NotImplemented,
    ) as error:
        detail = one_line(error, 200)
        raise UserError(f"{path}: not a usable ONNX file: fetch it again ({detail})") from None


def _available_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every platform
        return os.cpu_count() or 1
