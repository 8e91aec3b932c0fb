"""Methods to evaluate, and the rows of the paper's table, which are built by name around a profile.

A labelled image goes in, an anomaly map comes out, higher is more anomalous.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import cv2
import numpy as np
from torch import Tensor

from anomaly_detector_ros.baselines.base import BASELINES, FittedBaseline
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.distances.l2 import squared_distance
from anomaly_detector_ros.distances.pixel import ssim_distance
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.evaluation.cache import array_digest
from anomaly_detector_ros.evaluation.cached import CachedParts
from anomaly_detector_ros.evaluation.datasets.base import LabelledImage
from anomaly_detector_ros.features.base import FEATURES, FeatureSettings
from anomaly_detector_ros.features.featup import FeatUp
from anomaly_detector_ros.features.networks import FeatureExtractor
from anomaly_detector_ros.features.preprocessing import resize
from anomaly_detector_ros.features.upsampling import upsample_bilinear
from anomaly_detector_ros.profiles import Profile
from anomaly_detector_ros.runtime.tensors import to_tensor

Settings = Mapping[str, Any]
FitBaseline = Callable[[Settings, FeatureSettings, int], tuple[FittedBaseline, Any]]

INPAINT_RADIUS = 5
# Guidance scales of the published code: what suits one guidance is too weak or strong for another.
GUIDANCE_SCALES = {"reverse": 1e4, "forward": 1e5, "mismatched": 7e4}


class Method(Protocol):
    """One row of a table."""

    @property
    def name(self) -> str:
        """Its name on the command line and in the results."""

    @property
    def key(self) -> Any:
        """Tells its maps from those of other methods and settings; anything JSON can write."""

    def anomaly_map(self, truth: LabelledImage) -> np.ndarray:
        """float32 (H, W), any range; only the methods that say so look at the labels."""
        ...


@dataclass(frozen=True)
class Edited:
    """Base of the methods that start from a detector's edit of the image."""

    name: str
    detector: Detector
    parts: CachedParts

    @property
    def key(self) -> Any:
        """See `Method`."""
        return [type(self).__name__, self.parts.profile_key(self.detector.profile)]

    def distance(self, image: np.ndarray, original: Tensor, edits: Tensor) -> np.ndarray:
        """The raw anomaly map (H, W) of edits (K, 3, h, w) of ``original`` (1, 3, h, w)."""
        raise NotImplementedError

    def raw_map(self, truth: LabelledImage) -> np.ndarray:
        """The anomaly map before it is averaged over segments, float32 (H, W)."""
        original, edits = self.parts.edits(self.detector, truth.image)
        return self.distance(truth.image, original, edits)

    def anomaly_map(self, truth: LabelledImage) -> np.ndarray:
        """See `Method`."""
        raw = self.raw_map(truth)
        scores, _ = self.detector.scores(raw, self.detector.segment(truth.image, raw))
        return scores


class Synthesis(Edited):
    """The detector itself: distance of features of input and edit."""

    def distance(self, image: np.ndarray, original: Tensor, edits: Tensor) -> np.ndarray:
        """See `Edited`."""
        return self.detector.compare(image, original, edits)


class PixelDifference(Edited):
    """Distance of the pictures themselves: no network looks at input and edit."""

    measure: Callable[[Tensor, Tensor], Tensor]

    def anomaly_map(self, truth: LabelledImage) -> np.ndarray:
        """See `Method`."""
        return refined(self.detector, truth.image, self.raw_map(truth))

    def distance(self, image: np.ndarray, original: Tensor, edits: Tensor) -> np.ndarray:
        """See `Edited`."""
        if self.detector.profile.parts.distance.compared_with == "image":
            original = to_tensor(image[None]).to(edits.device)
            edits = resize(edits, image.shape[:2])
        distance = self.measure(original, edits).mean(0, keepdim=True)
        return upsample_bilinear(distance, image.shape[:2])[0].cpu().numpy()


class StructuralDifference(PixelDifference):
    """(1 - SSIM) / 2 of input and edit (Wang et al. 2004)."""

    measure = staticmethod(ssim_distance)


class SquaredColours(PixelDifference):
    """Sum of the squared differences of the colours of input and edit, as the authors have it."""

    measure = staticmethod(squared_distance)


class PerfectEdit(Edited):
    """The detector's analysis of an edit in which the labelled anomalies are inpainted.

    Telea's method (2004), at full resolution, and nothing else changes: the ceiling for any better
    edit.
    """

    def raw_map(self, truth: LabelledImage) -> np.ndarray:
        """See `Edited`; looks at the labels."""
        mask = truth.anomaly.astype(np.uint8)
        inpainted = cv2.inpaint(truth.image, mask, INPAINT_RADIUS, cv2.INPAINT_TELEA)
        pair = to_tensor(np.stack([truth.image, inpainted])).to(self.detector.device)
        return self.detector.compare(truth.image, pair[:1], pair[1:])


@dataclass(frozen=True)
class Fitted:
    """A baseline on the features of the image, averaged over the detector's segments."""

    name: str
    baseline: FittedBaseline
    features: FeatureExtractor
    detector: Detector
    key: Any

    def anomaly_map(self, truth: LabelledImage) -> np.ndarray:
        """See `Method`."""
        raw = self.baseline.score_image(self.features, truth.image)
        return refined(self.detector, truth.image, raw)


@dataclass(frozen=True)
class RandomScores:
    """Uniform noise, the same for the same image: what chance reaches."""

    name: str = "random"
    key: Any = "random"

    def anomaly_map(self, truth: LabelledImage) -> np.ndarray:
        """See `Method`."""
        seed = int(array_digest(truth.image)[:8], 16)
        return np.random.default_rng(seed).random(truth.image.shape[:2], np.float32)


def refined(detector: Detector, image: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """A raw map averaged over the detector's segments of the image."""
    return detector.refine(raw, detector.segment(image, raw))


@dataclass(frozen=True)
class Row:
    """One row: how it differs from the profile it is built around.

    Attributes:
        title: what the tables call it.
        published: the paper's weighted AUC-PR and weighted F1* by data set; none for rows that it
            does not have.
        method: how the maps are made.
        overrides: changes to the profile, by part.
    """

    title: str
    published: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    method: type[Edited | Fitted | RandomScores] = Synthesis
    overrides: Mapping[str, Settings] = field(default_factory=dict)


def _paper(
    title: str,
    rugd: tuple[float, float],
    rellis: tuple[float, float],
    method: type[Edited | Fitted] = Synthesis,
    **overrides: Settings,
) -> Row:
    return Row(title, {"rugd": rugd, "rellis": rellis}, method, overrides)


ROWS: Mapping[str, Row] = {
    "ssim": _paper("SSIM of input and edit", (0.293, 0.410), (0.278, 0.506), StructuralDifference),
    "gmm": _paper("Gaussian mixture", (0.554, 0.587), (0.549, 0.534), Fitted),
    "nearest": _paper("Nearest neighbour", (0.705, 0.629), (0.536, 0.498), Fitted),
    "flow": _paper("Normalizing flow", (0.616, 0.596), (0.541, 0.545), Fitted),
    "mismatched": _paper(
        "Mismatched guidance", (0.629, 0.591), (0.462, 0.522), sampler={"guidance": "mismatched"}
    ),
    "forward": _paper(
        "Forward matching", (0.697, 0.578), (0.462, 0.514), sampler={"guidance": "forward"}
    ),
    "resnet": _paper(
        "ResNet features", (0.424, 0.524), (0.255, 0.484), features={"name": "resnet"}
    ),
    "no_segments": _paper(
        "Without segments", (0.645, 0.737), (0.396, 0.546), segmenter={"name": "none"}
    ),
    "rgb": _paper("RGB in place of features", (0.302, 0.591), (0.144, 0.482), SquaredColours),
    "dinov2": _paper(
        "DINOv2 features", (0.685, 0.598), (0.416, 0.518), features={"name": "dinov2"}
    ),
    "vit": _paper("ViT features", (0.692, 0.571), (0.255, 0.493), features={"name": "vit"}),
    "clip": _paper("CLIP features", (0.694, 0.585), (0.499, 0.532), features={"name": "clip"}),
    "dino": _paper("DINO features", (0.665, 0.622), (0.416, 0.521), features={"name": "dino"}),
    "no_upsampler": _paper(
        "Ours without the upsampler",
        (0.724, 0.858),
        (0.475, 0.549),
        upsampler={"name": "bilinear"},
    ),
    "ours": _paper("Ours", (0.709, 0.599), (0.568, 0.540)),
    "random": Row("Random scores", method=RandomScores),
    "perfect": Row("Ours, anomalies inpainted (ceiling of any edit)", method=PerfectEdit),
}
# What one asks of a profile by default, and what the paper's table holds.
DEFAULT_ROWS = ("ours", "rgb", "random", "perfect")
TABLE1_ROWS = tuple(ROWS)


def row_of(name: str) -> Row:
    """The row of this name: a key of `ROWS`, or a baseline that the paper does not have.

    Raises:
        UserError: neither.
    """
    if name in ROWS:
        return ROWS[name]
    if ":" not in name and name not in BASELINES.names():
        raise UserError(
            f"unknown method '{name}': choose one of {', '.join(ROWS)}, "
            "or give FILE.py:NAME for a baseline of your own"
        )
    return Row(BASELINES.get(name).name, method=Fitted)


@dataclass(frozen=True)
class Preset:
    """How the baselines of the table are made.

    Attributes:
        settings: of the baseline of a row; by default the row's name alone.
        features: of a profile, what the baselines look at; by default the profile's own.
    """

    settings: Mapping[str, Settings] = field(default_factory=dict)
    features: Callable[[Profile], Settings] = lambda profile: profile.features


def _upsampled(profile: Profile) -> Settings:
    """FeatUp's features of the whole image at 546 x 686, their `new_size`."""
    cut = ("mode", "tile_size", "input_size")
    network = {key: value for key, value in profile.features.items() if key not in cut}
    own = FEATURES.read(network).trained_upsampler
    upsampler = FeatUp().for_features(own)
    return {"name": "upsampled", "network": network, "input_size": (546, 686), **upsampler}


PRESETS: Mapping[str, Preset] = {
    "ours": Preset(),
    # From baseline/ of xinyunsunshine/Tiny-Anomaly-by-Synthesis: knn.py, gmm.py, nf.py and
    # run_baseline.py. What they do not set is scikit-learn's and normflows' default.
    "paper": Preset(
        {
            "nearest": {"name": "nearest", "metric": "l2"},
            "gmm": {"name": "gmm", "whiten": False, "pca_dims": None, "max_iterations": 50},
            "flow": {"name": "residual_flow"},
        },
        _upsampled,
    ),
}


def preset(name: str) -> Preset:
    """The baselines of this name.

    Raises:
        UserError: there are none.
    """
    if name not in PRESETS:
        raise UserError(f"unknown baselines '{name}': choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def build_method(
    name: str,
    profile: Profile,
    parts: CachedParts,
    fit: FitBaseline,
    baselines: str = "ours",
) -> Method:
    """The method of one row around a profile.

    Args:
        name: see `row_of`.
        fit: gives the fitted baseline of some settings on an extractor's features of nominal
            images, each seen in so many other lights too, and its key.
        baselines: how they are made: a key of `PRESETS`.

    Raises:
        UserError: unknown row, or weights that it needs cannot be had.
    """
    row = row_of(name)
    if row.method is RandomScores:
        return RandomScores()
    changed = with_overrides(profile, row.overrides)
    parts.fetch(changed)
    detector = Detector.from_parts(changed, parts, calibrated=False)
    if issubclass(row.method, Edited):
        return row.method(name, detector, parts)
    made = preset(baselines)
    seen = FEATURES.read(made.features(changed))
    for model in seen.models():
        parts.registry.fetch(model, offline=parts.loader.offline)
    lights = changed.parts.distance.lights
    baseline, key = fit(made.settings.get(name, {"name": name}), seen, lights)
    key = [key, parts.profile_key(changed)]
    own = seen == changed.parts.features
    # Those of every pixel are too many to be kept.
    extractor = parts.features(seen) if own else parts.plain_features(seen)
    return Fitted(name, baseline, extractor, detector, key)


def with_overrides(profile: Profile, overrides: Mapping[str, Settings]) -> Profile:
    """A profile with a row's changes.

    Another guidance takes the published code's ratio of scales. A distance that is fitted knows the
    profile's own edits and features: rows with others compare by cosine distance.
    """
    changed = profile
    for part, settings in overrides.items():
        old = getattr(profile, part)
        if part == "features":
            new = _other_features(old, settings)
        elif part == "sampler":
            known = GUIDANCE_SCALES.get(old.get("guidance", "reverse"), GUIDANCE_SCALES["reverse"])
            ratio = GUIDANCE_SCALES[settings["guidance"]] / known
            scale = float(old.get("guidance_scale", 0.0)) * ratio
            new = {**old, **settings, "guidance_scale": scale}
        else:
            new = settings
        changed = replace(changed, **{part: dict(new)})  # type: ignore[arg-type]
    if overrides.keys() & {"sampler", "features", "upsampler"}:
        fitted = changed.parts.distance.fitted
        distance = {"name": "cosine"} if fitted else changed.distance
        changed = replace(changed, distance=distance, calibration={})
    if changed.features["name"] != profile.features["name"]:
        parts = changed.parts
        own = parts.upsampler.for_features(parts.features.trained_upsampler)
        changed = replace(changed, upsampler={**changed.upsampler, **own})
    return changed


def _other_features(old: Settings, new: Settings) -> Settings:
    """Another feature space on what the profile's own sees, whole or in tiles."""
    if old["name"] == new["name"]:
        return old
    if old.get("mode", "whole") != "whole":
        kept = ("mode", "tile_size", "input_size", "as_in_featup", "dtype")
        return {**{key: old[key] for key in kept if key in old}, **new}
    # The shorter side alone: networks differ in what their sides are multiples of.
    size = old.get("input_size")
    return {**({"input_size": min(size)} if isinstance(size, (list, tuple)) else {}), **new}
