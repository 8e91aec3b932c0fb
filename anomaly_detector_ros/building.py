"""The parts of detectors, each loaded once, and what the scores that they give depend on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from anomaly_detector_ros.calibration.calibration import Calibration, load_calibration
from anomaly_detector_ros.distances.base import Distance
from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.features.base import FeatureSettings
from anomaly_detector_ros.features.networks import FeatureExtractor
from anomaly_detector_ros.features.upsampling import Upsampler, UpsamplerSettings
from anomaly_detector_ros.lessons.journal import Lessons, load_lessons
from anomaly_detector_ros.part_settings import describe
from anomaly_detector_ros.profiles import Profile
from anomaly_detector_ros.runtime.devices import choose_dtype
from anomaly_detector_ros.runtime.fitted_file import digest
from anomaly_detector_ros.segmentation.base import Segmenter, SegmenterSettings
from anomaly_detector_ros.synthesis.denoisers.base import Denoiser
from anomaly_detector_ros.synthesis.denoisers.loading import DenoiserSettings, load_denoiser
from anomaly_detector_ros.weights.loading import Loader, is_path
from anomaly_detector_ros.weights.registry import Registry

Part = TypeVar("Part")


class Parts:
    """Denoisers, extractors, upsamplers, segmenters and calibrations by their settings.

    Args:
        device: where they run.
        registry: finds their weights; the package's own by default.
        offline: never touch the network for weights.
    """

    def __init__(
        self, device: torch.device, registry: Registry | None = None, *, offline: bool = False
    ) -> None:
        self.device, self.registry = device, registry or Registry.default()
        self.loader = Loader(self.registry, device, offline)
        self._built: dict[str, Any] = {}

    def fetch(self, profile: Profile) -> None:
        """Brings the weights that a profile needs and that are not here.

        Raises:
            UserError: they cannot be had.
        """
        for model in profile.model_names():
            self.registry.fetch(model, offline=self.loader.offline)

    def denoiser(self, settings: DenoiserSettings) -> Denoiser:
        """The denoiser, whose weights are checked."""

        def load() -> Denoiser:
            model = settings.model
            folder = Path(model) if is_path(model) else self.registry.path(model, verify=True)
            dtype = choose_dtype(settings.dtype, self.device)
            return load_denoiser(folder, device=self.device, dtype=dtype)

        return self.once("denoiser", (settings.model, settings.dtype), load)

    def features(self, settings: FeatureSettings) -> FeatureExtractor:
        """The feature extractor."""
        return self.plain_features(settings)

    def plain_features(self, settings: FeatureSettings) -> FeatureExtractor:
        """The extractor itself, even where `features` gives one that keeps its results."""
        return self.once("features", settings, lambda: settings.build(self.loader))

    def upsampler(self, settings: UpsamplerSettings) -> Upsampler:
        """The upsampler."""
        return self.once("upsampler", settings, lambda: settings.build(self.loader))

    def segmenter(self, settings: SegmenterSettings) -> Segmenter | None:
        """The segmenter; None where scores stay those of pixels."""
        return self.once("segmenter", settings, lambda: settings.build(self.loader))

    def distance(self, profile: Profile) -> Distance:
        """The distance of a profile; one that is fitted comes from its calibration.

        Raises:
            UserError: unknown distance; no calibration, or one of other settings (the segmenter's
                may differ).
        """
        settings = profile.parts.distance
        if not settings.fitted:
            return settings.build({}).to(self.device)
        calibration = self.calibration(profile, segmenter=False)
        if calibration is None or not calibration.distance:
            raise UserError(
                f"profile '{profile.name}': the {profile.distance['name']} distance needs a "
                "calibration: run anomaly-detector calibrate and set 'calibration: {file: FILE}'"
            )
        try:
            return settings.build(calibration.distance).to(self.device)
        except (KeyError, ValueError) as error:
            raise UserError(
                f"calibration '{profile.calibration['file']}' does not hold what the "
                f"{profile.distance['name']} distance learnt ({one_line(error, 120)}): run "
                "anomaly-detector calibrate again"
            ) from error

    def calibration(self, profile: Profile, *, segmenter: bool = True) -> Calibration | None:
        """The calibration of a profile, None if it has none.

        Args:
            segmenter: whether it must be fitted for the profile's segmenter.

        Raises:
            UserError: it cannot be read, or was fitted for other settings or weights.
        """
        file = profile.calibration.get("file")
        if not file:
            return None
        calibration = self.once("calibration", file, lambda: load_calibration(Path(file)))
        present = fingerprint(profile, self.registry)
        found = differences(calibration.fingerprint, present, segmenter=segmenter)
        if found:
            raise UserError(
                f"calibration '{file}' is not for profile '{profile.name}' ({'; '.join(found)}): "
                "run anomaly-detector calibrate again, or set 'calibration: null'"
            )
        return calibration

    def lessons(self, profile: Profile, file: Path | None = None) -> Lessons:
        """What was taught to the distance of a profile: what a file holds, or none yet.

        Raises:
            UserError: it cannot be read, or was taught with other settings, weights or another
                memory; the distance cannot be taught.
        """
        calibration = self.calibration(profile)
        if calibration is None or not calibration.distance:
            raise UserError(
                f"profile '{profile.name}' has no memory that could be taught: choose one whose "
                "distance is novelty, with a calibration"
            )
        present = fingerprint(profile, self.registry)
        none = Lessons(present, digest(calibration.distance))
        if file is None:
            return none
        lessons = load_lessons(file)
        found = differences(lessons.fingerprint, present)
        if not found and lessons.memory != none.memory:
            found = ["another memory"]
        if found:
            raise UserError(
                f"the lessons '{file}' are not for profile '{profile.name}' ({'; '.join(found)}): "
                "give it the lessons taken with it, or another file"
            )
        return lessons

    def once(self, kind: str, settings: object, build: Callable[[], Part]) -> Part:
        """What ``build`` returned when it was first asked for something of this kind."""
        key = f"{kind} {settings!r}"
        if key not in self._built:
            self._built[key] = build()
        return self._built[key]  # type: ignore[no-any-return]


WEIGHTS = "weights"
# Everything that a score depends on. The segmenter is last: distances don't depend on it.
_PARTS = ("denoiser", "sampler", "features", "upsampler", "distance", "segmenter")
# Precision and the way a network is called; scores hardly depend on them.
_OF_THE_DEVICE = frozenset({"dtype", "compile"})


def fingerprint(profile: Profile, registry: Registry) -> dict[str, Any]:
    """What a profile's scores depend on: the settings of each part, and the content of its weights.

    Paths are left out: what lies there counts.

    Raises:
        UserError: weights that are not here.
    """
    parts, loader = profile.parts, Loader(registry, torch.device("cpu"), offline=True)
    described = {part: describe(getattr(parts, part)) for part in _PARTS if part != "sampler"}
    described["sampler"] = describe(profile.sampler)
    return {
        **{
            part: {key: value for key, value in settings.items() if key not in _OF_THE_DEVICE}
            for part, settings in described.items()
        },
        WEIGHTS: {name: part.sha256(loader) for name, part in parts.weighted.items()},
    }


def differences(
    fitted: Mapping[str, Any], present: Mapping[str, Any], *, segmenter: bool = True
) -> list[str]:
    """What differs between two fingerprints, one phrase each; empty if they agree.

    Args:
        fitted: the calibration's.
        present: the profile's.
        segmenter: whether its settings matter.
    """
    compared = _PARTS if segmenter else _PARTS[:-1]
    found: list[str] = []
    for part in compared:
        old, new = dict(fitted.get(part, {})), dict(present.get(part, {}))
        # Another kind of part has other settings too.
        keys = ["name"] if old.get("name") != new.get("name") else sorted({*old, *new})
        found += [
            f"{part}.{key} is {new.get(key, 'not set')}, was {old.get(key, 'not set')}"
            for key in keys
            if old.get(key) != new.get(key)
        ]
    # And other files.
    named = {phrase.partition(".")[0] for phrase in found}
    old, new = dict(fitted.get(WEIGHTS, {})), dict(present.get(WEIGHTS, {}))
    return found + [
        f"other weights of {part}"
        for part in compared
        if old.get(part, []) != new.get(part, []) and part not in named
    ]


def fewer_prompts(profile: Profile) -> Profile:
    """The profile with a quarter of its segmenter's prompts, where it has any."""
    fewer = profile.parts.segmenter.with_fewer_prompts()
    return replace(profile, segmenter={**profile.segmenter, **fewer})
