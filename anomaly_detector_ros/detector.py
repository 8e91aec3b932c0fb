"""The detector: one camera image in, one `Detection` out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_detector_ros.building import Parts
from anomaly_detector_ros.calibration.calibration import DEFAULT_CAMERA, Calibration
from anomaly_detector_ros.calibration.level import frame_level, level_among
from anomaly_detector_ros.detection import Detection, check_image, frame_score
from anomaly_detector_ros.distances.base import Distance
from anomaly_detector_ros.distances.cosine import CosineDistance
from anomaly_detector_ros.features.networks import FeatureExtractor
from anomaly_detector_ros.features.preprocessing import resize
from anomaly_detector_ros.features.upsampling import Nearest, Upsampler, upsample_bilinear
from anomaly_detector_ros.lessons.journal import Lessons
from anomaly_detector_ros.lessons.teaching import Look
from anomaly_detector_ros.profiles import DEFAULT_PROFILE, Profile, load_profile
from anomaly_detector_ros.runtime.clock import StageClock
from anomaly_detector_ros.runtime.devices import choose_device, memory_bytes
from anomaly_detector_ros.runtime.tensors import to_pictures, to_tensor
from anomaly_detector_ros.segmentation.base import Segmenter, segment_average
from anomaly_detector_ros.synthesis.denoisers.base import Denoiser
from anomaly_detector_ros.synthesis.denoisers.loading import compiled
from anomaly_detector_ros.synthesis.editor import Editor
from anomaly_detector_ros.synthesis.samplers import Callback

_LOG = logging.getLogger(__name__)
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
        self.lessons: Lessons | None = None
        self._squares = profile.parts.features.squares()
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
        detector = cls(
            profile,
            parts.denoiser(profile.parts.denoiser),
            parts.features(profile.parts.features.of_one_view()),
            parts.upsampler(profile.parts.upsampler),
            parts.segmenter(profile.parts.segmenter),
            parts.device,
            distance or parts.distance(profile),
            parts.calibration(profile) if calibrated else None,
        )
        if distance is None and profile.lessons.get("file"):
            detector.teach(parts.lessons(profile, Path(profile.lessons["file"])))
        return detector

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

    def teach(self, lessons: Lessons) -> None:
        """Takes lessons into use from the next image on, in place of those before.

        What was fitted stays as it is: without lessons the detector is what it was.

        Raises:
            UserError: the distance cannot be taught.
        """
        self.distance = self.distance.taught(lessons.taught())
        if self.calibration is not None:
            self.calibration = replace(self.calibration, lessons=lessons.scores())
        self.lessons = lessons

    @torch.inference_mode()
    def rescore(self, look: Look, distance: Distance) -> tuple[np.ndarray, float]:
        """The scores (H', W') of a frame, and its level, by another distance.

        The features of the frame and of its edits stay what they were.

        Distances are enlarged bilinearly, whatever the upsampler.
        """
        features = torch.from_numpy(look.features).to(self.device).float()
        maps = upsample_bilinear(distance(features[:1], features[1:]), look.segments.shape)
        raw = distance.anomaly(maps).cpu().numpy()
        return self.scores(raw, look.segments)

    def detect(
        self,
        image: np.ndarray,
        camera: str = DEFAULT_CAMERA,
        *,
        before: Sequence[float] = (),
        callback: Callback | None = None,
    ) -> Detection:
        """Finds the anomalies of one image, uint8 RGB (H, W, 3).

        Args:
            camera: whose calibrated scores count.
            before: `Detection.level` of the last frames of a stream; none of a single picture. See
                `calibration.level.StreamLevels`.
            callback: called after every step of the sampler; see `Editor.edit`.

        Raises:
            UserError: the image has another shape or dtype, or no pixels.
        """
        return self.detect_batch([image], [camera], [before], callback=callback)[0]

    def detect_batch(
        self,
        images: Sequence[np.ndarray],
        cameras: Sequence[str] | None = None,
        before: Sequence[Sequence[float]] | None = None,
        *,
        callback: Callback | None = None,
    ) -> list[Detection]:
        """Finds the anomalies of several images, of any sizes.

        They are edited in one batch, and their features and those of all edits come of few calls.

        Args:
            cameras: of each image, the camera whose calibrated scores count; the default one's.
            before: of each image, see `detect`.
            callback: see `detect`.
        """
        for image in images:
            check_image(image)
        if not images:
            return []
        clock = StageClock(self.device)
        with clock.measure("features"):
            looks = self._look(images)
        with clock.measure("synthesis"):
            originals = not self._full_resolution
            inputs, edits = self._edit(images, looks, originals=originals, callback=callback)
        with clock.measure("features"):
            seen = [
                self._compared(image, inputs[i : i + 1], edits[i]) for i, image in enumerate(images)
            ]
            known = looks if self._full_resolution and self._squares is None else None
            maps = self._extract(seen, known)
        shares = {stage: seconds / len(images) for stage, seconds in clock.seconds.items()}
        names = cameras or [DEFAULT_CAMERA] * len(images)
        levels = before or [()] * len(images)
        return [
            self._conclude(
                image,
                edits[i],
                maps[i],
                seen[i],
                StageClock(self.device, **shares),
                camera,
                levels[i],
            )
            for i, (image, camera) in enumerate(zip(images, names, strict=True))
        ]

    def synthesize(self, images: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Originals (B, 3, h, w), edits (B, K, 3, h, w), at the model's size; see `Editor.edit`."""
        return self._edit(images, self._look(images))

    def _look(self, images: Sequence[np.ndarray]) -> list[Tensor] | None:
        """Features (1, C, h, w) of each image, where edits depend on them."""
        if not self.profile.parts.distance.guides_edits:
            return None
        with torch.inference_mode():
            looks = self._extract([self._to_tensor(image)[None] for image in images])
        return [each[0] for each in looks]

    def _edit(
        self,
        images: Sequence[np.ndarray],
        looks: Sequence[Tensor] | None,
        *,
        originals: bool = True,
        callback: Callback | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `synthesize`; ``looks`` is what `_look` gives."""
        inputs = torch.cat([self._model_input(image) for image in images])
        strength = None
        if looks is not None:
            # One by one: images of other sizes may have other grids.
            size = self._editor.size
            strengths = [Nearest().enlarge(self.distance.strength(look), size) for look in looks]
            strength = torch.cat(strengths)
        return self._editor.edit(
            self.denoiser, inputs, strength=strength, originals=originals, callback=callback
        )

    def _model_input(self, image: np.ndarray) -> Tensor:
        return resize(self._to_tensor(image), self._editor.size)

    @torch.inference_mode()
    def _extract(
        self, seen: Sequence[Tensor], known: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """Features (n, 1 + K, C, h, w) of what `_compared` gives of each image.

        Args:
            known: of each image its own features (1, C, h, w), where they need no second look.
        """
        if known is not None:
            edits = self._extract([views[:, 1:] for views in seen])
            pairs = zip(known, edits, strict=True)
            return [torch.cat([look[None], each], 1) for look, each in pairs]
        alike = len({each.shape for each in seen}) == 1
        count = seen[0].shape[0] * seen[0].shape[1]
        step = max(1, _FEATURE_BATCH // count) if alike else 1
        maps: list[Tensor] = []
        for start in range(0, len(seen), step):
            group = seen[start : start + step]
            found = self.features.extract(torch.cat([each.flatten(0, 1) for each in group]))
            maps.extend(
                each.unflatten(0, views.shape[:2])
                for each, views in zip(found.split(len(found) // len(group)), group, strict=True)
            )
        return maps

    @property
    def _full_resolution(self) -> bool:
        """Whether edits are compared with the camera's image rather than with what was edited."""
        chosen = self.profile.parts.distance.compared_with
        return chosen == "image" if chosen else self.distance.full_resolution

    def _compared(self, image: np.ndarray, original: Tensor, edits: Tensor) -> Tensor:
        """What is compared, (n, 1 + K, 3, H, W): n views of the image and of its K edits."""
        if self._full_resolution:
            original = self._to_tensor(image)
        if self._squares is None:
            height, width = original.shape[-2:]
            return torch.cat([original, resize(edits, (height, width))])[None]
        # Each is resized once, from its own size.
        squares = [self._squares.cut(each, image.shape[:2]) for each in (original, edits)]
        return torch.cat(squares, dim=1)

    @torch.inference_mode()
    def _conclude(
        self,
        image: np.ndarray,
        edits: Tensor,
        maps: Tensor,
        seen: Tensor,
        clock: StageClock,
        camera: str = DEFAULT_CAMERA,
        before: Sequence[float] = (),
    ) -> Detection:
        """What `edits` changed in an image, given what is ``seen`` of both and its features."""
        size = image.shape[:2]
        with clock.measure("upsampling"):
            raw, uncertainty = self._distance(maps, seen, size)
            edited = to_pictures(resize(edits[:1], size))[0]  # a mean of several is a blur
        with clock.measure("segmentation"):
            segments = self.segment(image, raw)
        with clock.measure("scoring"):
            scores, level = self.scores(raw, segments, before)
            heatmap = self._to_heatmap(scores, camera, maps[0, :1], level)
            score = frame_score(heatmap)
        mask = heatmap >= self.threshold
        timings = clock.timings()
        stages = ", ".join(f"{stage} {seconds:.3f}" for stage, seconds in timings.items())
        _LOG.debug("%dx%d in seconds: %s", size[1], size[0], stages)
        return Detection(
            heatmap,
            mask,
            segments,
            edited,
            score,
            timings,
            uncertainty,
            scores,
            self.calibrated,
            level,
            _directions(maps[0]) if self._squares is None else None,
        )

    @torch.inference_mode()
    def compare(self, image: np.ndarray, original: Tensor, edits: Tensor) -> np.ndarray:
        """The raw anomaly map, float32 (H, W): what ``edits`` changed.

        Args:
            image: uint8 RGB (H, W, 3).
            original: (1, 3, h, w) in [-1, 1], what was edited.
            edits: (K, 3, h, w) in [-1, 1].
        """
        seen = self._compared(image, original, edits)
        return self._distance(self._extract([seen])[0], seen, image.shape[:2])[0]

    def _distance(
        self, maps: Tensor, seen: Tensor, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The raw anomaly map and how much the edits disagree, both float32 (H, W).

        Args:
            maps: features (n, 1 + K, C, h, w) of ``seen``.
            seen: see `_compared`.
            size: (H, W).
        """
        within = self._squares.size if self._squares else size
        distances = [
            self.upsampler.distance(
                features[:1], features[1:], views[:1], views[1:], within, self.distance
            )
            for features, views in zip(maps, seen, strict=True)
        ]
        joined = self._squares.join(distances, size) if self._squares else distances[0]
        summed_up = (self.distance.anomaly(joined), self.distance.spread(joined))
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

    def scores(
        self, raw: np.ndarray, segments: np.ndarray, before: Sequence[float] = ()
    ) -> tuple[np.ndarray, float]:
        """What a calibration is of, float32 (H, W): `refine`, less a share of the level.

        Args:
            before: see `detect`.

        Returns:
            These scores, and the frame's own level.
        """
        refined, level = self.refine(raw, segments), frame_level(raw)
        share = self.distance.frame_level
        if not share:
            return refined, level
        return refined - np.float32(share * level_among(level, before)), level

    def alarms(self, look: Look, distance: Distance, camera: str) -> np.ndarray:
        """The heatmap (H', W') of a frame by another distance; see `rescore`."""
        scores, level = self.rescore(look, distance)
        features = torch.from_numpy(look.features[:1]).to(self.device).float()
        return self._to_heatmap(scores, camera, features, level, distance)

    def _to_heatmap(
        self,
        scores: np.ndarray,
        camera: str,
        features: Tensor,
        level: float,
        distance: Distance | None = None,
    ) -> np.ndarray:
        if not np.isfinite(scores).all():
            raise RuntimeError("the anomaly map holds values that are not finite")
        if self.calibration is None:
            return np.asarray(np.clip(scores, 0, 1), np.float32)
        taught = self.calibration.lessons is not None and self.calibration.is_of_lessons(
            (distance or self.distance).taught_share(features), level, camera
        )
        return self.calibration.heatmap(scores, camera, taught=taught)

    def _to_tensor(self, image: np.ndarray) -> Tensor:
        # A copy: an image that shares a message's memory is read-only, which torch cannot hold.
        return to_tensor(np.array(image)[None], self.device)

    def memory_bytes(self) -> int:
        """Memory in use: what torch holds on a CUDA device, else the process's resident size."""
        return memory_bytes(self.device)


def _directions(features: Tensor) -> np.ndarray:
    """Features (B, C, h, w) at length 1, float16."""
    found: np.ndarray = F.normalize(features.float(), dim=1).half().cpu().numpy()
    return found
