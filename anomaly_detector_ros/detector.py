"""The detector: one camera image in, one `Detection` out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomaly_detector_ros.analysis.calibration import Calibration
from anomaly_detector_ros.analysis.distances import CosineDistance, Distance
from anomaly_detector_ros.analysis.features import FeatureExtractor
from anomaly_detector_ros.analysis.preprocessing import resize
from anomaly_detector_ros.analysis.scoring import frame_score, segment_average
from anomaly_detector_ros.analysis.segmentation import Segmenter
from anomaly_detector_ros.analysis.upsampling import Upsampler
from anomaly_detector_ros.clock import StageClock
from anomaly_detector_ros.devices import choose_device, memory_bytes
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.parts import Parts
from anomaly_detector_ros.profiles import DEFAULT_PROFILE, Profile, load_profile
from anomaly_detector_ros.synthesis.denoisers import Denoiser
from anomaly_detector_ros.synthesis.editing import make_sampler
from anomaly_detector_ros.tensors import to_pictures, to_tensor


@dataclass(frozen=True)
class Detection:
    """The anomalies of one image; all arrays have the size of the input image.

    Attributes:
        heatmap: float32 (H, W) in [0, 1], higher is more anomalous. Calibrated: the share of
            nominal pixels with a lower score; else the raw distance, clipped.
        mask: bool (H, W), heatmap at or above the threshold.
        segments: int32 (H, W), the segment a pixel belongs to, 0 for none.
        edited: uint8 RGB (H, W, 3), the synthesised image.
        score: the frame's anomaly score in [0, 1]; see `analysis.scoring.frame_score`.
        timings: seconds by stage: synthesis, features, upsampling, segmentation, scoring, total.
        uncertainty: float32 (H, W), standard deviation of the raw distances of the edits, before
            the average over segments; 0 where there is one edit.
        calibrated: whether the heatmap is.
    """

    heatmap: np.ndarray
    mask: np.ndarray
    segments: np.ndarray
    edited: np.ndarray
    score: float
    timings: dict[str, float]
    uncertainty: np.ndarray
    calibrated: bool = False


class Detector:
    """Analysis by synthesis with the parts a profile names.

    Args:
        profile: settings of the parts.
        denoiser, features, upsampler, segmenter: the parts themselves, as the profile describes
            them.
        device: where images are held between the parts.
        distance: compares features; the cosine distance by default.
        calibration: makes the heatmap of the scores; without it they are clipped to [0, 1].
    """

    def __init__(
        self,
        profile: Profile,
        denoiser: Denoiser,
        features: FeatureExtractor,
        upsampler: Upsampler,
        segmenter: Segmenter | None,
        device: torch.device,
        distance: Distance | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.profile, self.device = profile, device
        self.denoiser, self.features = denoiser, features
        self.upsampler, self.segmenter = upsampler, segmenter
        self.distance, self.calibration = distance or CosineDistance(), calibration
        self.threshold = profile.threshold
        self._sampler = make_sampler(profile.sampler)

    @classmethod
    def from_profile(
        cls,
        name: str = DEFAULT_PROFILE,
        *,
        device: str = "auto",
        models_dir: Path | None = None,
        offline: bool = False,
        overrides: Mapping[str, Any] | None = None,
    ) -> Detector:
        """Loads the models of a profile, fetching what is missing unless ``offline``.

        Args:
            name: profile name, or path of a profiles file.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            models_dir: directory with another ``profiles.yaml``.
            offline: never touch the network.
            overrides: see `profiles.load_profile`.

        Raises:
            UserError: unknown profile or device, missing or altered weights.
        """
        profile = load_profile(name, models_dir=models_dir, overrides=overrides)
        parts = Parts(choose_device(device), offline=offline)
        parts.fetch(profile)
        return cls.from_parts(profile, parts)

    @classmethod
    def from_parts(
        cls,
        profile: Profile,
        parts: Parts,
        *,
        distance: Distance | None = None,
        calibrated: bool = True,
    ) -> Detector:
        """The detector of a profile out of ``parts``, which other detectors may share.

        Args:
            distance: in place of the profile's.
            calibrated: False where raw scores alone are wanted: the calibration's scores are left
                out, and it need not be fitted for the profile's segmenter.

        Raises:
            UserError: see `Parts`.
        """
        return cls(
            profile,
            parts.denoiser(profile.denoiser),
            parts.features(profile.features),
            parts.upsampler(profile.upsampler),
            parts.segmenter(profile.segmenter),
            parts.device,
            distance or parts.distance(profile),
            parts.calibration(profile) if calibrated else None,
        )

    @property
    def calibrated(self) -> bool:
        """Whether the heatmap holds shares of nominal pixels rather than raw distances."""
        return self.calibration is not None

    def detect(self, image: np.ndarray) -> Detection:
        """Finds the anomalies of one image, uint8 RGB (H, W, 3).

        Raises:
            UserError: the image has another shape or dtype, or no pixels.
        """
        return self.detect_batch([image])[0]

    def detect_batch(self, images: Sequence[np.ndarray]) -> list[Detection]:
        """Finds the anomalies of several images, of any sizes, edited in one batch."""
        for image in images:
            _check_image(image)
        if not images:
            return []
        clock = StageClock(self.device)
        with clock.measure("synthesis"):
            inputs, edits = self.synthesize(images)
        share = clock.seconds["synthesis"] / len(images)
        return [
            self.analyse(image, inputs[i : i + 1], edits[i], synthesis_seconds=share)
            for i, image in enumerate(images)
        ]

    @torch.no_grad()  # not inference_mode: the exact Jacobian differentiates inside
    def synthesize(self, images: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Inputs (B, 3, h, w) and their edits (B, K, 3, h, w) at the model's size, in [-1, 1]."""
        size = tuple(self.profile.denoiser["size"])
        inputs = torch.cat([resize(self._to_tensor(image), size) for image in images])
        count = int(self.profile.sampler.get("num_edits", 1))
        generator = torch.Generator().manual_seed(int(self.profile.sampler.get("seed", 0)))
        # Every image gets the same K noises: what stands still in a video is edited alike.
        noises = torch.randn((count, *inputs.shape[1:]), generator=generator)
        repeated = inputs.repeat_interleave(count, 0)
        edits = self._sampler(
            self.denoiser,
            repeated,
            initial_noise=noises.repeat(len(images), 1, 1, 1).to(repeated),
            generator=generator,
        )
        edits = edits.clamp(-1, 1)
        if not torch.isfinite(edits).all():
            raise RuntimeError("the denoiser returned values that are not finite")
        return inputs, edits.unflatten(0, (len(images), count))

    @torch.inference_mode()
    def analyse(
        self,
        image: np.ndarray,
        original: Tensor,
        edits: Tensor,
        *,
        synthesis_seconds: float = 0.0,
    ) -> Detection:
        """Finds what ``edits`` changed in an image, whoever made them.

        Args:
            image: uint8 RGB (H, W, 3), for the segments and the size of the result.
            original: (1, 3, h, w) in [-1, 1], what was edited: the image at any resolution.
            edits: (K, 3, h, w) in [-1, 1], K edits of it.
            synthesis_seconds: goes into the timings.
        """
        clock = StageClock(self.device, synthesis=synthesis_seconds)
        size = image.shape[:2]
        with clock.measure("features"):
            maps = self.features.extract(torch.cat([original, edits]))
        with clock.measure("upsampling"):
            raw, uncertainty = self._distance(maps, original, edits, size)
            edited = to_pictures(resize(edits.mean(0, keepdim=True), size))[0]
        with clock.measure("segmentation"):
            segments = self.segment(image, raw)
        with clock.measure("scoring"):
            heatmap = self._to_heatmap(self.refine(raw, segments))
            score = frame_score(heatmap)
        mask = heatmap >= self.threshold
        return Detection(
            heatmap,
            mask,
            segments,
            edited,
            score,
            clock.timings(),
            uncertainty,
            self.calibrated,
        )

    @torch.inference_mode()
    def compare(self, original: Tensor, edits: Tensor, size: tuple[int, int]) -> np.ndarray:
        """The raw anomaly map, float32 (H, W): distance of the features of an image and its edits.

        Args:
            original: (1, 3, h, w) in [-1, 1], what was edited.
            edits: (K, 3, h, w) in [-1, 1].
            size: H and W of the result.
        """
        # Both at the model's resolution: detail that only the input has would count as change.
        maps = self.features.extract(torch.cat([original, edits]))
        return self._distance(maps, original, edits, size)[0]

    def _distance(
        self, maps: Tensor, original: Tensor, edits: Tensor, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The raw anomaly map and how much the edits disagree, both float32 (H, W)."""
        distances = self.upsampler.distance(
            maps[:1], maps[1:], original, edits, size, self.distance
        )
        summed_up = (self.distance.anomaly(distances), self.distance.spread(distances))
        raw, spread = (each.float().cpu().numpy() for each in summed_up)
        return raw, spread

    def segment(self, image: np.ndarray, raw: np.ndarray) -> np.ndarray:
        """Segments of an image, int32 (H, W), 0 where there is none; ``raw`` prompts them."""
        if self.segmenter is None:
            return np.zeros(image.shape[:2], np.int32)
        return self.segmenter.segment(image, raw)

    def refine(self, raw: np.ndarray, segments: np.ndarray) -> np.ndarray:
        """The raw map averaged over segments, float32 (H, W); without a segmenter, as it is."""
        if self.segmenter is None:
            return raw
        return segment_average(raw, segments, self.profile.segmenter.get("uncovered", "zero"))

    def _to_heatmap(self, scores: np.ndarray) -> np.ndarray:
        if not np.isfinite(scores).all():
            raise RuntimeError("the anomaly map holds values that are not finite")
        if self.calibration is None:
            return np.clip(scores, 0, 1).astype(np.float32)
        return self.calibration.heatmap(scores)

    def _to_tensor(self, image: np.ndarray) -> Tensor:
        # A copy: an image that shares a message's memory is read-only, which torch cannot hold.
        return to_tensor(np.array(image)[None], self.device)

    def memory_bytes(self) -> int:
        """Memory in use: what torch holds on a CUDA device, else the process's resident size."""
        return memory_bytes(self.device)


def _check_image(image: np.ndarray) -> None:
    if (
        not isinstance(image, np.ndarray)
        or image.dtype != np.uint8
        or image.ndim != 3
        or image.shape[2] != 3
        or image.size == 0
    ):
        found = f"{getattr(image, 'dtype', type(image))} {getattr(image, 'shape', '')}".strip()
        raise UserError(f"image is {found}: give a non-empty uint8 RGB array (H, W, 3)")
