"""What a calibration is fitted for: the settings of a profile and the weights behind them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anomaly_detector_ros.analysis.distances import distance_settings
from anomaly_detector_ros.models.landing import hash_file
from anomaly_detector_ros.models.registry import Registry
from anomaly_detector_ros.profiles import Profile

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
    parts["distance"] = distance_settings(profile.distance)
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
