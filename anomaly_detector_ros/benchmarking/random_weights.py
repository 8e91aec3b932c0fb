"""Profiles with random weights: the same networks, and so the same times, without their files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from anomaly_detector_ros.profiles import Profile
from anomaly_detector_ros.synthesis.schedule import Schedule
from anomaly_detector_ros.training.config import TrainingConfig, build_unet
from anomaly_detector_ros.training.denoising import write_pipeline
from anomaly_detector_ros.weights.registry import Registry


def write_random(profile: Profile, folder: Path, registry: Registry, preset: str = "base") -> Path:
    """Writes a profiles file with the profile as it is but for its weights.

    Random are those of the features, of SAM, and of a denoiser that is not here, in whose place
    comes the network of a training preset. MobileSAM and FeatUp keep theirs. There is no
    calibration, and a distance that needs one is replaced by the cosine's.

    Args:
        profile: any.
        folder: for the file and the denoiser.
        registry: tells whether the denoiser is here.
        preset: of the denoiser that is not; ``base`` has the size of the paper's.

    Returns:
        The file, which `profiles.load_profile` reads.
    """
    denoiser, parts = dict(profile.denoiser), profile.parts
    if not profile.denoiser_is_path() and not registry.has(str(denoiser["model"])):
        denoiser["model"] = str(_write_denoiser(folder / "denoiser", denoiser["size"], preset))
    content = {
        "denoiser": denoiser,
        "sampler": dict(profile.sampler),
        "features": {**profile.features, **parts.features.random_weights()},
        "upsampler": dict(profile.upsampler),
        "distance": {"name": "cosine"} if parts.distance.fitted else dict(profile.distance),
        "segmenter": {**profile.segmenter, **parts.segmenter.random_weights()},
        "threshold": profile.threshold,
    }
    file = folder / "profile.yaml"
    file.write_text(yaml.safe_dump({f"{Path(profile.name).stem} (random)": content}), "utf-8")
    return file


def _write_denoiser(directory: Path, size: Sequence[int], preset: str) -> Path:
    height, width = (int(side) for side in size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = build_unet(TrainingConfig(size=(height, width), preset=preset))
    write_pipeline(unet, Schedule.named("cosine"), directory)
    return directory
