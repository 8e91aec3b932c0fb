"""The parts of detectors, each loaded once, and what the scores that they give depend on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from anomaly_detector_ros.calibration.calibration import Calibration, load_calibration
from anomaly_detector_ros.distances.base import DISTANCES, Distance
from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.features.extractors import FeatureExtractor, make_features
from anomaly_detector_ros.features.upsampling import Upsampler, make_upsampler
from anomaly_detector_ros.profiles import Profile
from anomaly_detector_ros.runtime.devices import choose_dtype
from anomaly_detector_ros.runtime.files import hash_file
from anomaly_detector_ros.segmentation.segmenters import Segmenter, make_segmenter
from anomaly_detector_ros.synthesis.denoisers.base import Denoiser
from anomaly_detector_ros.synthesis.denoisers.loading import load_denoiser
from anomaly_detector_ros.weights.registry import Registry

Settings = Mapping[str, Any]
Part = TypeVar("Part")
_PROMPTS = {"max_prompts": 16, "points_per_side": 32}


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
        self.device, self.offline = device, offline
        self.registry = registry or Registry.default()
        self._built: dict[str, Any] = {}

    def fetch(self, profile: Profile) -> None:
        """Brings the weights that a profile needs and that are not here.

        Raises:
            UserError: they cannot be had.
        """
        for model in profile.model_names():
            self.registry.fetch(model, offline=self.offline)

    def denoiser(self, settings: Settings) -> Denoiser:
        """The denoiser of a profile's section: ``model`` (a registry name or a path), ``dtype``."""
        used = {key: settings.get(key) for key in ("model", "dtype")}
        return self._once("denoiser", used, lambda: self._load_denoiser(settings))

    def _load_denoiser(self, settings: Settings) -> Denoiser:
        model = str(settings["model"])
        directory = Path(model) if "/" in model else self.registry.path(model, verify=True)
        dtype = choose_dtype(settings.get("dtype", "auto"), self.device)
        return load_denoiser(directory, device=self.device, dtype=dtype)

    def features(self, settings: Settings) -> FeatureExtractor:
        """The extractor of a profile's section; see `features.extractors.make_features`."""
        return self._once(
            "features",
            settings,
            lambda: make_features(
                settings["name"], settings, self.registry, self.device, offline=self.offline
            ),
        )

    def plain_features(self, settings: Settings) -> FeatureExtractor:
        """The extractor itself, even where `features` gives one that keeps its results."""
        return Parts.features(self, settings)

    def upsampler(self, settings: Settings) -> Upsampler:
        """The upsampler of a profile's section; see `features.upsampling.make_upsampler`."""
        return self._once(
            "upsampler",
            settings,
            lambda: make_upsampler(settings["name"], settings, self.registry, self.device),
        )

    def segmenter(self, settings: Settings) -> Segmenter | None:
        """The segmenter of a profile's section; see `segmentation.segmenters.make_segmenter`."""
        return self._once(
            "segmenter",
            settings,
            lambda: make_segmenter(settings["name"], settings, self.registry, self.device),
        )

    def distance(self, profile: Profile) -> Distance:
        """The distance of a profile; one that is fitted comes from its calibration.

        Raises:
            UserError: unknown distance; no calibration, or one of other settings (the segmenter's
                may differ).
        """
        settings = DISTANCES.read(profile.distance)
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
        calibration = self._once(
            "calibration", profile.calibration, lambda: load_calibration(Path(file))
        )
        present = fingerprint(profile, self.registry)
        found = differences(calibration.fingerprint, present, segmenter=segmenter)
        if found:
            raise UserError(
                f"calibration '{file}' is not for profile '{profile.name}' ({'; '.join(found)}): "
                "run anomaly-detector calibrate again, or set 'calibration: null'"
            )
        return calibration

    def _once(self, kind: str, settings: Settings, build: Callable[[], Part]) -> Part:
        key = f"{kind} {json.dumps(dict(settings), sort_keys=True, default=str)}"
        if key not in self._built:
            self._built[key] = build()
        return self._built[key]


WEIGHTS = "weights"
# Everything that a score depends on. The segmenter is last: distances don't depend on it.
_PARTS = ("denoiser", "sampler", "features", "upsampler", "distance", "segmenter")
_OF_THE_DEVICE = ("dtype", "compile")
_WEIGHT_FILES = (".safetensors", ".onnx", ".bin", ".pt")


def fingerprint(profile: Profile, registry: Registry) -> dict[str, Any]:
    """The settings that a profile's scores depend on, by part, and the sha256 of its weights.

    Precision and the way a network is called are left out: they depend on the device. A denoiser
    that is a directory counts by what it holds, not by its path.
    """
    parts: dict[str, Any] = {
        part: {k: v for k, v in getattr(profile, part).items() if k not in _OF_THE_DEVICE}
        for part in _PARTS
    }
    parts[WEIGHTS] = {name: weights_sha256(name, registry) for name in profile.model_names()}
    distance = asdict(DISTANCES.read(profile.distance))
    parts["distance"] = {"name": profile.distance["name"], **distance}
    if profile.denoiser_is_path():
        directory = Path(str(parts["denoiser"].pop("model"))).expanduser()
        found = sorted(f for f in directory.rglob("*") if f.suffix in _WEIGHT_FILES)
        parts[WEIGHTS]["denoiser"] = [hash_file(file) for file in found]
    return json.loads(json.dumps(parts))  # as it comes back from a file


def weights_sha256(model: str, registry: Registry) -> list[str]:
    """The sha256 of a registry model's files: the declared one, else that of the file itself."""
    folder = registry.directory(model)
    files = registry.entry(model).files
    return [file.sha256 or hash_file(folder / file.name) for file in files]


def differences(
    fitted: Mapping[str, Any], present: Mapping[str, Any], *, segmenter: bool = True
) -> list[str]:
    """What differs between two fingerprints, one phrase each; empty if they agree.

    Args:
        fitted: the calibration's.
        present: the profile's.
        segmenter: whether its settings matter.
    """
    found = []
    for part in _PARTS if segmenter else _PARTS[:-1]:
        old, new = dict(fitted.get(part, {})), dict(present.get(part, {}))
        found += [
            f"{part}.{key} is {new.get(key, 'not set')}, was {old.get(key, 'not set')}"
            for key in sorted({*old, *new})
            if old.get(key) != new.get(key)
        ]
    old, new = dict(fitted.get(WEIGHTS, {})), dict(present.get(WEIGHTS, {}))
    # A model that only one of them has is another setting, named above.
    found += [f"other weights of {name}" for name in old if name in new and old[name] != new[name]]
    return found


def fewer_prompts(profile: Profile) -> Profile:
    """The profile with a quarter of its segmenter's prompts, where it has any."""
    settings = profile.segmenter
    if settings.get("name") not in ("sam", "mobile_sam"):
        return profile
    default = "automatic" if settings["name"] == "sam" else "prompted"
    automatic = settings.get("mode", default) == "automatic"
    name = "points_per_side" if automatic else "max_prompts"
    count = int(settings.get(name, _PROMPTS[name]))
    # The grid has the square of points_per_side.
    fewer: Mapping[str, Any] = {name: max(1, count // (2 if automatic else 4))}
    return replace(profile, segmenter={**settings, **fewer})
