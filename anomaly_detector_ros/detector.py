"""The detector: one camera image in, one `Detection` out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomaly_detector_ros.building import Parts
from anomaly_detector_ros.calibration.calibration import DEFAULT_CAMERA, Calibration
from anomaly_detector_ros.detection import Detection, check_image, frame_score
from anomaly_detector_ros.distances.base import Distance
from anomaly_detector_ros.distances.cosine import CosineDistance
from anomaly_detector_ros.features.networks import FeatureExtractor
from anomaly_detector_ros.features.preprocessing import resize
from anomaly_detector_ros.features.upsampling import Upsampler
from anomaly_detector_ros.profiles import DEFAULT_PROFILE, Profile, load_profile
from anomaly_detector_ros.runtime.clock import StageClock
from anomaly_detector_ros.runtime.devices import choose_device, memory_bytes
from anomaly_detector_ros.runtime.tensors import to_pictures, to_tensor
from anomaly_detector_ros.segmentation.base import Segmenter, segment_average
from anomaly_detector_ros.synthesis.denoisers.base import Denoiser
from anomaly_detector_ros.synthesis.denoisers.loading import compiled
from anomaly_detector_ros.synthesis.editor import Editor
from anomaly_detector_ros.synthesis.samplers import Callback

# Images in one call of the feature extractor, unless one frame's edits are more: as many keep a
# GPU busy, and a CPU's memory small.
_FEATURE_BATCH = 16


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
        self.denoiser = compiled(denoiser, profile.parts.denoiser.compile)
        self.features = features
        self.upsampler, self.segmenter = upsampler, segmenter
        self.distance, self.calibration = distance or CosineDistance(), calibration
        self.threshold = profile.threshold
        self._editor = Editor(profile.parts.sampler, profile.parts.denoiser.size, device)

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
            parts.denoiser(profile.parts.denoiser),
            parts.features(profile.parts.features),
            parts.upsampler(profile.parts.upsampler),
            parts.segmenter(profile.parts.segmenter),
            parts.device,
            distance or parts.distance(profile),
            parts.calibration(profile) if calibrated else None,
        )

    @property
    def calibrated(self) -> bool:
        """Whether the heatmap holds shares of nominal pixels rather than raw distances."""
        return self.calibration is not None

    def recalibrate(self, calibration: Calibration, file: Path) -> None:
        """Takes other nominal scores from the next image on; the distance stays as it is.

        Args:
            file: where the calibration is kept.
        """
        self.profile = replace(self.profile, calibration={"file": str(file)})
        self.calibration = calibration

    def detect(
        self,
        image: np.ndarray,
        camera: str = DEFAULT_CAMERA,
        *,
        callback: Callback | None = None,
    ) -> Detection:
        """Finds the anomalies of one image, uint8 RGB (H, W, 3).

        Args:
            camera: whose calibrated scores count.
            callback: called after every step of the sampler; see `Editor.edit`.

        Raises:
            UserError: the image has another shape or dtype, or no pixels.
        """
        return self.detect_batch([image], [camera], callback=callback)[0]

    def detect_batch(
        self,
        images: Sequence[np.ndarray],
        cameras: Sequence[str] | None = None,
        *,
        callback: Callback | None = None,
    ) -> list[Detection]:
        """Finds the anomalies of several images, of any sizes.

        They are edited in one batch, and their features and those of all edits come of few calls.

        Args:
            cameras: of each image, the camera whose calibrated scores count; the default one's.
            callback: see `detect`.
        """
        for image in images:
            check_image(image)
        if not images:
            return []
        clock = StageClock(self.device)
        with clock.measure("synthesis"):
            looked_at = self.upsampler.guided or not self.distance.full_resolution
            inputs, edits = self.synthesize(images, originals=looked_at, callback=callback)
        with clock.measure("features"):
            maps = self._extract(images, inputs, edits)
        shares = {stage: seconds / len(images) for stage, seconds in clock.seconds.items()}
        names = cameras or [DEFAULT_CAMERA] * len(images)
        return [
            self._conclude(
                image,
                inputs[i : i + 1],
                edits[i],
                maps[i],
                StageClock(self.device, **shares),
                camera,
            )
            for i, (image, camera) in enumerate(zip(images, names, strict=True))
        ]

    def synthesize(
        self,
        images: Sequence[np.ndarray],
        *,
        originals: bool = True,
        callback: Callback | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Originals (B, 3, h, w), edits (B, K, 3, h, w), at the model's size; see `Editor.edit`."""
        inputs = torch.cat([self._model_input(image) for image in images])
        return self._editor.edit(self.denoiser, inputs, originals=originals, callback=callback)

    def _model_input(self, image: np.ndarray) -> Tensor:
        return resize(self._to_tensor(image), self._editor.size)

    @torch.inference_mode()
    def _extract(self, images: Sequence[np.ndarray], inputs: Tensor, edits: Tensor) -> list[Tensor]:
        """Of each image the features (1 + K, C, h, w) of what `_compared` gives."""
        shown = [
            self._compared(image, inputs[i : i + 1], edits[i]) for i, image in enumerate(images)
        ]
        alike = len({each.shape for each in shown}) == 1
        count = len(shown[0])
        step = max(1, _FEATURE_BATCH // count) if alike else 1
        maps: list[Tensor] = []
        for start in range(0, len(shown), step):
            group = torch.cat(shown[start : start + step])
            maps.extend(self.features.extract(group).split(count))
        return maps

    def _compared(self, image: np.ndarray, original: Tensor, edits: Tensor) -> Tensor:
        """What is compared, (1 + K, 3, H, W): the image as the distance sees it, then the edits."""
        if self.distance.full_resolution:
            original = self._to_tensor(image)
        height, width = original.shape[-2:]
        return torch.cat([original, resize(edits, (height, width))])

    @torch.inference_mode()
    def _conclude(
        self,
        image: np.ndarray,
        original: Tensor,
        edits: Tensor,
        maps: Tensor,
        clock: StageClock,
        camera: str = DEFAULT_CAMERA,
    ) -> Detection:
        """What `edits` changed in an image, given the features of the original and of them."""
        size = image.shape[:2]
        with clock.measure("upsampling"):
            raw, uncertainty = self._distance(maps, original, edits, size)
            edited = to_pictures(resize(edits.mean(0, keepdim=True), size))[0]
        with clock.measure("segmentation"):
            segments = self.segment(image, raw)
        with clock.measure("scoring"):
            scores = self.refine(raw, segments)
            heatmap = self._to_heatmap(scores, camera)
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
            scores,
            self.calibrated,
        )

    @torch.inference_mode()
    def compare(self, image: np.ndarray, original: Tensor, edits: Tensor) -> np.ndarray:
        """The raw anomaly map, float32 (H, W): what ``edits`` changed.

        Args:
            image: uint8 RGB (H, W, 3).
            original: (1, 3, h, w) in [-1, 1], what was edited.
            edits: (K, 3, h, w) in [-1, 1].
        """
        maps = self.features.extract(self._compared(image, original, edits))
        return self._distance(maps, original, edits, image.shape[:2])[0]

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
        return segment_average(raw, segments, self.profile.parts.segmenter.uncovered)

    def _to_heatmap(self, scores: np.ndarray, camera: str) -> np.ndarray:
        if not np.isfinite(scores).all():
            raise RuntimeError("the anomaly map holds values that are not finite")
        if self.calibration is None:
            return np.asarray(np.clip(scores, 0, 1), np.float32)
        return self.calibration.heatmap(scores, camera)

    def _to_tensor(self, image: np.ndarray) -> Tensor:
        # A copy: an image that shares a message's memory is read-only, which torch cannot hold.
        return to_tensor(np.array(image)[None], self.device)

    def memory_bytes(self) -> int:
        """Memory in use: what torch holds on a CUDA device, else the process's resident size."""
        return memory_bytes(self.device)
