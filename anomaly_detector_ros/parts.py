"""The parts of detectors, each loaded once, however many detectors share it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from anomaly_detector_ros.analysis.calibration import Calibration, load_calibration
from anomaly_detector_ros.analysis.distances import CosineDistance, Distance, distance_settings
from anomaly_detector_ros.analysis.features import FeatureExtractor, make_features
from anomaly_detector_ros.analysis.segmentation import Segmenter, make_segmenter
from anomaly_detector_ros.analysis.upsampling import Upsampler, make_upsampler
from anomaly_detector_ros.devices import choose_dtype
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.fingerprint import differences, fingerprint
from anomaly_detector_ros.models.registry import Registry
from anomaly_detector_ros.profiles import Profile
from anomaly_detector_ros.synthesis.denoisers import Denoiser, load_denoiser

Settings = Mapping[str, Any]
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
        """The extractor of a profile's section; see `analysis.features.make_features`."""
        return self._once(
            "features",
            settings,
            lambda: make_features(
                settings["name"], settings, self.registry, self.device, offline=self.offline
            ),
        )

    def upsampler(self, settings: Settings) -> Upsampler:
        """The upsampler of a profile's section; see `analysis.upsampling.make_upsampler`."""
        return self._once(
            "upsampler",
            settings,
            lambda: make_upsampler(settings["name"], settings, self.registry, self.device),
        )

    def segmenter(self, settings: Settings) -> Segmenter | None:
        """The segmenter of a profile's section; see `analysis.segmentation.make_segmenter`."""
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
        name = distance_settings(profile.distance)["name"]
        if name == "cosine":
            return CosineDistance()
        calibration = self.calibration(profile, segmenter=False)
        if calibration is None or calibration.distance is None:
            raise UserError(
                f"profile '{profile.name}': the {name} distance needs a calibration: run "
                "anomaly-detector calibrate and set 'calibration: {file: FILE}'"
            )
        return calibration.distance.to(self.device)

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
