"""The detector: one camera image in, one `Detection` out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomaly_detector_ros.analysis.features import FeatureExtractor, make_features
from anomaly_detector_ros.analysis.preprocessing import resize
from anomaly_detector_ros.analysis.scoring import cosine_distance, frame_score, segment_average
from anomaly_detector_ros.analysis.segmentation import Segmenter, make_segmenter
from anomaly_detector_ros.analysis.upsampling import upsample_bilinear
from anomaly_detector_ros.devices import choose_device, choose_dtype, memory_bytes
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.models.registry import Registry
from anomaly_detector_ros.profiles import DEFAULT_PROFILE, Profile, load_profile
from anomaly_detector_ros.synthesis.denoisers import Denoiser, DiffusersDenoiser
from anomaly_detector_ros.synthesis.guidance import reverse_matching
from anomaly_detector_ros.synthesis.samplers import algorithm1, few_step
from anomaly_detector_ros.synthesis.similarity import GaussianSimilarity
from anomaly_detector_ros.tensors import to_pictures, to_tensor

Sampler = Callable[..., Tensor]


@dataclass(frozen=True)
class Detection:
    """The anomalies of one image; all arrays have the size of the input image.

    Attributes:
        heatmap: float32 (H, W) in [0, 1], higher is more anomalous.
        mask: bool (H, W), heatmap at or above the threshold.
        segments: int32 (H, W), the segment a pixel belongs to, 0 for none.
        edited: uint8 RGB (H, W, 3), the synthesised image.
        score: the frame's anomaly score in [0, 1]; see `analysis.scoring.frame_score`.
        timings: seconds by stage: synthesis, features, upsampling, segmentation, scoring, total.
    """

    heatmap: np.ndarray
    mask: np.ndarray
    segments: np.ndarray
    edited: np.ndarray
    score: float
    timings: dict[str, float]


class Detector:
    """Analysis by synthesis with the parts a profile names.

    Args:
        profile: settings of the parts.
        denoiser, features, segmenter: the parts themselves, as the profile describes them.
        device: where images are held between the parts.
    """

    def __init__(
        self,
        profile: Profile,
        denoiser: Denoiser,
        features: FeatureExtractor,
        segmenter: Segmenter | None,
        device: torch.device,
    ) -> None:
        self.profile, self.device = profile, device
        self.denoiser, self.features, self.segmenter = denoiser, features, segmenter
        self.threshold = profile.threshold
        self.calibrated = False
        self._sampler = _make_sampler(profile.sampler)
        if profile.upsampler.get("name", "bilinear") != "bilinear":
            raise UserError(f"unknown upsampler '{profile.upsampler['name']}': choose bilinear")

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
        chosen = choose_device(device)
        registry = Registry.default()
        for model in profile.model_names():
            registry.fetch(model, offline=offline)
        model = profile.denoiser["model"]
        denoiser = DiffusersDenoiser.from_pretrained(
            Path(model) if profile.denoiser_is_path() else registry.path(model, verify=True),
            device=chosen,
            dtype=choose_dtype(profile.denoiser.get("dtype", "auto"), chosen),
        )
        return cls(
            profile,
            denoiser,
            make_features(profile.features["name"], profile.features, registry, chosen),
            make_segmenter(profile.segmenter["name"], profile.segmenter, registry, chosen),
            chosen,
        )

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
        clock = _Clock(self.device)
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
        clock = _Clock(self.device, synthesis=synthesis_seconds)
        size = image.shape[:2]
        with clock.measure("features"):
            # Both at the model's resolution: detail that only the input has would count as change.
            maps = self.features.extract(torch.cat([original, edits]))
            distance = cosine_distance(maps[:1].expand_as(maps[1:]), maps[1:]).mean(0, keepdim=True)
        with clock.measure("upsampling"):
            raw = upsample_bilinear(distance, size)[0].float().cpu().numpy()
            edited = to_pictures(resize(edits.mean(0, keepdim=True), size))[0]
        with clock.measure("segmentation"):
            segments = (
                np.zeros(size, np.int32)
                if self.segmenter is None
                else self.segmenter.segment(image, raw)
            )
        with clock.measure("scoring"):
            if self.segmenter is not None:
                uncovered = self.profile.segmenter.get("uncovered", "zero")
                raw = segment_average(raw, segments, uncovered)
            heatmap = np.clip(raw, 0, 1).astype(np.float32)
            if not np.isfinite(heatmap).all():
                raise RuntimeError("the anomaly map holds values that are not finite")
            score = frame_score(heatmap)
        mask = heatmap >= self.threshold
        return Detection(heatmap, mask, segments, edited, score, clock.timings())

    def _to_tensor(self, image: np.ndarray) -> Tensor:
        # A copy: an image that shares a message's memory is read-only, which torch cannot hold.
        return to_tensor(np.array(image)[None], self.device)

    def memory_bytes(self) -> int:
        """Memory in use: what torch holds on a CUDA device, else the process's resident size."""
        return memory_bytes(self.device)


class _Clock:
    """Seconds by stage of one image, with the device's queue drained at both ends."""

    def __init__(self, device: torch.device, **seconds: float) -> None:
        self.device = device
        self.seconds = seconds

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        start = self._now()
        yield
        self.seconds[stage] = self._now() - start

    def timings(self) -> dict[str, float]:
        return {**self.seconds, "total": sum(self.seconds.values())}


_SAMPLERS: dict[str, tuple[Sampler, frozenset[str]]] = {
    "few_step": (few_step, frozenset({"noise_level", "steps", "data_std"})),
    "algorithm1": (algorithm1, frozenset({"jacobian"})),
}
_COMMON_SETTINGS = frozenset({"name", "guidance_scale", "num_edits", "seed"})


def _make_sampler(settings: Mapping[str, Any]) -> Sampler:
    """The profile's sampler as a function of (denoiser, x_input, initial_noise, generator)."""
    name = settings.get("name")
    if name not in _SAMPLERS:
        raise UserError(f"unknown sampler '{name}': choose {' or '.join(_SAMPLERS)}")
    sampler, known = _SAMPLERS[name]
    unknown = set(settings) - known - _COMMON_SETTINGS
    if unknown:
        raise UserError(
            f"sampler {name} has no setting '{min(unknown)}': "
            f"known are {', '.join(sorted(known | _COMMON_SETTINGS))}"
        )
    options = {key: settings[key] for key in known if key in settings}
    if "jacobian" in known:
        jacobian = options.pop("jacobian", "identity")
        options["guidance"] = partial(reverse_matching, jacobian=jacobian)
    similarity = GaussianSimilarity(float(settings.get("guidance_scale", 0.0)))
    return partial(sampler, similarity=similarity, **options)


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
