"""Each part run on a made-up scene, to be compared with stored results or with another device.

``scripts/write_selfcheck_reference.py`` stores what a machine computes that the tests pass on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from anomaly_detector_ros.building import Parts
from anomaly_detector_ros.calibration.calibration import load_calibration
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.distances.base import Distance
from anomaly_detector_ros.errors import as_user_error, one_line
from anomaly_detector_ros.features.base import FEATURES
from anomaly_detector_ros.features.featup import FeatUpUpsampler, JbuStack
from anomaly_detector_ros.profiles import Profile, load_profile, profile_names
from anomaly_detector_ros.runtime.resources import share_dir
from anomaly_detector_ros.runtime.tensors import to_device, to_tensor
from anomaly_detector_ros.selfcheck.finding import Finding
from anomaly_detector_ros.synthesis.denoisers.loading import DenoiserSettings
from anomaly_detector_ros.synthesis.editor import Editor
from anomaly_detector_ros.synthesis.spaces import space_of
from anomaly_detector_ros.weights.loading import RANDOM

FILE = "selfcheck.safetensors"
SIZE = (136, 256)


@dataclass(frozen=True)
class Part:
    """A part and what its result may differ by from the stored one, or the CPU's.

    Attributes:
        name: for people; the stored tensor's.
        needs: a model of the registry, or a profile with its models; None for random weights,
            whose results are not stored: a GPU is compared with the CPU alone.
        run: what is compared; bool tensors are compared by the share of them that differs, others
            by |a - b| / |b| in the Euclidean norm.
        tolerance: between CPUs, whose libraries sum in another order.
        gpu_tolerance: of a GPU, whose convolutions round products to 10 bits (TF32).
    """

    name: str
    needs: str | None
    run: Callable[[Parts], Tensor]
    tolerance: float
    gpu_tolerance: float


def scene(height: int, width: int) -> np.ndarray:
    """A road under a sky, with a box on it: uint8 RGB (H, W, 3), the same everywhere."""
    y, x = np.mgrid[:height, :width] / np.array([height, width]).reshape(2, 1, 1)
    grain = np.sin(91 * x + 37 * y) * np.sin(53 * y - 71 * x)
    ground = np.stack([0.45 + 0.1 * grain, 0.40 + 0.12 * grain, 0.28 + 0.08 * grain], -1)
    sky = np.stack([0.55 + 0.2 * y, 0.65 + 0.2 * y, 0.85 + 0.1 * y], -1)
    picture = np.where((y < 0.4 + 0.03 * np.sin(9 * x))[..., None], sky, ground)
    picture[(np.abs(x - 0.6) < 0.06) & (np.abs(y - 0.65) < 0.1)] = (0.9, 0.1, 0.1)
    return np.asarray(np.round(picture.clip(0, 1) * 255), np.uint8)


def _pixels(parts: Parts, size: tuple[int, int]) -> Tensor:
    return to_tensor(scene(*size)[None], parts.device)


def _exact(name: str) -> Profile:
    """A profile in full precision: another precision is another result."""
    overrides: dict[str, Any] = {
        "denoiser": {"dtype": "float32", "compile": "none"},
        "features": {"dtype": "float32"},
    }
    if hasattr(load_profile(name).parts.segmenter, "dtype"):
        overrides["segmenter"] = {"dtype": "float32"}
    return load_profile(name, overrides=overrides)


def _distance(profile: Profile, parts: Parts) -> Distance:
    # Not through `Parts.distance`: the calibration was fitted in the profile's own precision.
    learnt = load_calibration(Path(profile.calibration["file"])).distance
    return profile.parts.distance.build(learnt).to(parts.device)


def _denoiser(parts: Parts) -> Tensor:
    denoiser = parts.denoiser(DenoiserSettings("offroad_small", (64, 120), "float32", "none"))
    x = _pixels(parts, (64, 120))
    with torch.no_grad():
        return torch.cat([denoiser(x, t) for t in (200, 700)])[..., ::3, ::3]


def _latents(parts: Parts) -> Tensor:
    denoiser = parts.denoiser(_exact("light").parts.denoiser)
    space = space_of(denoiser)
    with torch.no_grad():
        x0 = denoiser(space.encode(_pixels(parts, (64, 120))), 400)
        return space.decode(x0)[..., ::3, ::3]


def _edit(parts: Parts) -> Tensor:
    settings = _exact("light").parts
    editor = Editor(settings.sampler, (64, 120), parts.device)
    strength = to_device(torch.linspace(0, 1, 15).expand(1, 8, 15), parts.device)
    denoiser, images = parts.denoiser(settings.denoiser), _pixels(parts, (64, 120))
    _, edits = editor.edit(denoiser, images, strength=strength)
    return edits[..., ::4, ::4]


def _features(parts: Parts) -> Tensor:
    extractor = parts.features(_exact("light").parts.features)
    return extractor.extract(_pixels(parts, SIZE))[:, ::8, ::2, ::2]


def _random_features(name: str, **settings: Any) -> Callable[[Parts], Tensor]:
    def run(parts: Parts) -> Tensor:
        given = {"name": name, "weights": RANDOM, "input_size": [96, 160], **settings}
        return parts.features(FEATURES.read(given)).extract(_pixels(parts, SIZE))

    return run


def _featup(parts: Parts) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stack = JbuStack(8).eval().requires_grad_(False)
        maps = torch.rand(3, 8, 8, 15)
    upsampler = FeatUpUpsampler(stack, device=parts.device)
    images, maps = _pixels(parts, SIZE), to_device(maps, parts.device)
    edits = torch.cat([images.flip(-1), images.neg()])
    return upsampler.distance(maps[:1], maps[1:], images, edits, SIZE)


def _novelty(parts: Parts) -> Tensor:
    profile = _exact("light")
    generator = torch.Generator().manual_seed(0)
    maps = to_device(torch.randn(3, 384, 8, 12, generator=generator), parts.device)
    distance = _distance(profile, parts)
    return distance.anomaly(distance(maps[:1], maps[1:]))


def _segments(name: str) -> Callable[[Parts], Tensor]:
    def run(parts: Parts) -> Tensor:
        segmenter = parts.segmenter(_exact(name).parts.segmenter)
        assert segmenter is not None
        image = scene(*SIZE)
        raw = np.asarray((image[..., 0] > 200) * np.float32(0.9) + image[..., 2] / 2550, np.float32)
        return _borders(torch.from_numpy(segmenter.segment(image, raw)))

    return run


def _borders(labels: Tensor) -> Tensor:
    """Where neighbours have other labels, bool: numbers of segments mean nothing."""
    right, below = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    return right[:-1] | below[:, :-1]


def _detection(name: str) -> Callable[[Parts], Tensor]:
    def run(parts: Parts) -> Tensor:
        profile = _exact(name)
        distance = _distance(profile, parts)
        detector = Detector.from_parts(profile, parts, distance=distance, calibrated=False)
        return torch.from_numpy(detector.detect(scene(*SIZE)).scores)[::4, ::4]

    return run


PARTS = (
    Part("denoiser of pixels", "offroad_small", _denoiser, 1e-3, 1e-2),
    Part("autoencoder and denoiser of latents", "light", _latents, 1e-3, 2e-2),
    Part("edit", "light", _edit, 1e-3, 2e-2),
    Part("features", "light", _features, 1e-3, 1e-2),
    Part("distance (novelty)", "light", _novelty, 1e-3, 1e-2),
    Part("superpixels", "light", _segments("light"), 0.0, 0.0),
    Part("MobileSAM", "embedded", _segments("embedded"), 1e-2, 2e-2),
    Part("MaskCLIP, random weights", None, _random_features("maskclip"), 0.0, 1e-2),
    Part("DINO, random weights", None, _random_features("dino"), 0.0, 1e-2),
    Part("ResNet-50, random weights", None, _random_features("resnet"), 0.0, 1e-2),
    Part("FeatUp, random weights", None, _featup, 0.0, 1e-2),
    Part("detection (light)", "light", _detection("light"), 1e-2, 5e-2),
    Part("detection (embedded)", "embedded", _detection("embedded"), 2e-2, 5e-2),
)


def _models(part: Part) -> list[str]:
    if part.needs in profile_names():
        return load_profile(part.needs).model_names()
    return [part.needs] if part.needs else []


def check(
    section: str,
    parts: Parts,
    wanted: Mapping[str, Tensor],
    tolerance: Callable[[Part], float],
    remedy: str,
) -> Iterator[tuple[Finding, Tensor | None]]:
    """Runs every part whose models are here: what was found, and its result.

    Args:
        section: of the findings.
        wanted: results by part; what is not among them is not compared.
        tolerance: what a part may differ by.
        remedy: for one that differs by more.
    """
    for part in PARTS:
        absent = [name for name in _models(part) if not parts.registry.has(name)]
        if absent:
            fetch = f"run `anomaly-detector models fetch {' '.join(absent)}`"
            yield Finding(section, part.name, f"needs {', '.join(absent)}", "skipped", fetch), None
            continue
        try:
            found = part.run(parts).cpu()
        except Exception as error:  # whatever is wrong with this machine is what we are here for
            told = f"{type(error).__name__}: {one_line(error, 200)}"
            yield Finding(section, part.name, told, "error", "attach this report to an issue"), None
            continue
        if part.name not in wanted:
            yield Finding(section, part.name, "runs"), found
            continue
        apart, allowed = difference(found, wanted[part.name]), tolerance(part)
        told = f"differs by {apart:.2g}, {allowed:g} allowed"
        yield (
            (
                Finding(section, part.name, told)
                if apart <= allowed
                else Finding(section, part.name, told, "error", remedy)
            ),
            found,
        )


def stored() -> dict[str, Tensor]:
    """The stored results by part.

    Raises:
        UserError: the file is missing or damaged.
    """
    file = share_dir("models") / FILE
    with as_user_error(f"cannot read '{file}'", "reinstall the package"):
        tensors = load_file(file)
    return tensors


def difference(found: Tensor, wanted: Tensor) -> float:
    """How far a result is from what it should be; see `Part.run`. Infinite for another shape."""
    found, wanted = found.cpu(), wanted.cpu()
    if found.shape != wanted.shape or not torch.isfinite(found.float()).all():
        return float("inf")
    if found.dtype == torch.bool:
        return float((found != wanted.bool()).float().mean())
    apart = torch.linalg.vector_norm(found.float() - wanted.float())
    return float(apart / torch.linalg.vector_norm(wanted.float()))
