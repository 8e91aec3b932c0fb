"""The rows of the paper's table, built by name around one profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from anomaly_detector_ros.baselines.base import Baseline
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.evaluation.cached import CachedParts
from anomaly_detector_ros.evaluation.table.methods import (
    ColourDifference,
    Edited,
    Fitted,
    Method,
    PerfectEdit,
    RandomScores,
    StructuralDifference,
    Synthesis,
)
from anomaly_detector_ros.profiles import Profile

Settings = Mapping[str, Any]
FitBaseline = Callable[[str, Settings], tuple[Baseline, Any]]

# Guidance scales of the published code: what suits one guidance is too weak or strong for another.
GUIDANCE_SCALES = {"reverse": 1e4, "forward": 1e5, "mismatched": 7e4}


@dataclass(frozen=True)
class Published:
    """AUC-PR and F1* of the paper's table."""

    rugd: tuple[float, float]
    rellis: tuple[float, float]


@dataclass(frozen=True)
class Row:
    """One row: how it differs from the profile it is built around.

    Attributes:
        title: what the tables call it.
        published: the paper's numbers, None for rows that the paper does not have.
        kind: synthesis, ssim, rgb, perfect, baseline or random; see `methods`.
        overrides: changes to the profile.
        baseline: name of a fitted baseline, if it is one.
    """

    title: str
    published: Published | None = None
    kind: str = "synthesis"
    overrides: Mapping[str, Settings] | None = None
    baseline: str = ""


def _features(name: str) -> Mapping[str, Settings]:
    return {"features": {"name": name}}


ROWS: Mapping[str, Row] = {
    "ssim": Row("SSIM of input and edit", Published((0.293, 0.410), (0.278, 0.506)), "ssim"),
    "gmm": Row(
        "Gaussian mixture", Published((0.554, 0.587), (0.549, 0.534)), "baseline", baseline="gmm"
    ),
    "nearest": Row(
        "Nearest neighbour",
        Published((0.705, 0.629), (0.536, 0.498)),
        "baseline",
        baseline="nearest",
    ),
    "flow": Row(
        "Normalizing flow", Published((0.616, 0.596), (0.541, 0.545)), "baseline", baseline="flow"
    ),
    "mismatched": Row(
        "Mismatched guidance",
        Published((0.629, 0.591), (0.462, 0.522)),
        overrides={"sampler": {"guidance": "mismatched"}},
    ),
    "forward": Row(
        "Forward matching",
        Published((0.697, 0.578), (0.462, 0.514)),
        overrides={"sampler": {"guidance": "forward"}},
    ),
    "resnet": Row(
        "ResNet features",
        Published((0.424, 0.524), (0.255, 0.484)),
        overrides=_features("resnet"),
    ),
    "no_segments": Row(
        "Without segments",
        Published((0.645, 0.737), (0.396, 0.546)),
        overrides={"segmenter": {"name": "none"}},
    ),
    "rgb": Row(
        "RGB in place of features",
        Published((0.302, 0.591), (0.144, 0.482)),
        "rgb",
    ),
    "dinov2": Row(
        "DINOv2 features",
        Published((0.685, 0.598), (0.416, 0.518)),
        overrides=_features("dinov2"),
    ),
    "vit": Row(
        "ViT features", Published((0.692, 0.571), (0.255, 0.493)), overrides=_features("vit")
    ),
    "clip": Row(
        "CLIP features", Published((0.694, 0.585), (0.499, 0.532)), overrides=_features("clip")
    ),
    "dino": Row(
        "DINO features", Published((0.665, 0.622), (0.416, 0.521)), overrides=_features("dino")
    ),
    "no_upsampler": Row(
        "Ours without the upsampler",
        Published((0.724, 0.858), (0.475, 0.549)),
        overrides={"upsampler": {"name": "bilinear"}},
    ),
    "ours": Row("Ours", Published((0.709, 0.599), (0.568, 0.540))),
    "random": Row("Random scores", kind="random"),
    "perfect": Row("Ours, anomalies inpainted (ceiling of any edit)", kind="perfect"),
}
_EDITED: Mapping[str, type[Edited]] = {
    "synthesis": Synthesis,
    "ssim": StructuralDifference,
    "rgb": ColourDifference,
    "perfect": PerfectEdit,
}
# What one asks of a profile by default, and what the paper's table holds.
DEFAULT_ROWS = ("ours", "rgb", "random", "perfect")
TABLE1_ROWS = tuple(ROWS)


def build_method(name: str, profile: Profile, parts: CachedParts, fit: FitBaseline) -> Method:
    """The method of one row around a profile.

    Args:
        name: key of `ROWS`.
        fit: gives the fitted baseline of a name on an extractor's features, and its key.

    Raises:
        UserError: unknown row, or weights that it needs cannot be had.
    """
    if name not in ROWS:
        raise UserError(f"unknown method '{name}': choose one of {', '.join(ROWS)}")
    row = ROWS[name]
    if row.kind == "random":
        return RandomScores()
    changed = with_overrides(profile, row.overrides or {})
    parts.fetch(changed)
    detector = Detector.from_parts(changed, parts, calibrated=False)
    if row.kind == "baseline":
        baseline, key = fit(row.baseline, changed.features)
        return Fitted(name, baseline, detector, [key, parts.profile_key(changed)])
    return _EDITED[row.kind](name, detector, parts)


def with_overrides(profile: Profile, overrides: Mapping[str, Settings]) -> Profile:
    """A profile with a row's changes.

    Another guidance takes the published code's ratio of scales. A whitened distance is fitted to
    the profile's own edits and features: rows with others compare by cosine distance.
    """
    changed = profile
    for part, settings in overrides.items():
        old = getattr(profile, part)
        if part == "features":
            new = _other_features(old, settings)
        elif part == "sampler":
            ratio = (
                GUIDANCE_SCALES[settings["guidance"]]
                / GUIDANCE_SCALES[old.get("guidance", "reverse")]
            )
            scale = float(old.get("guidance_scale", 0.0)) * ratio
            new = {**old, **settings, "guidance_scale": scale}
        else:
            new = settings
        changed = replace(changed, **{part: new})
    if overrides.keys() & {"sampler", "features", "upsampler"}:
        changed = replace(changed, distance={"name": "cosine"}, calibration={})
    if changed.features["name"] != profile.features["name"] and (
        changed.upsampler["name"] == "featup"
    ):
        # Its last projection is trained for the profile's features, whatever the width.
        changed = replace(changed, upsampler={**changed.upsampler, "fixup": False})
    return changed


def _other_features(old: Settings, new: Settings) -> Settings:
    """Another feature space on what the profile's own sees, whole or in tiles."""
    if old["name"] == new["name"]:
        return old
    if old.get("mode") == "tiles":
        kept = ("mode", "tile_size", "input_size", "imagenet_pixels", "dtype")
        return {**{key: old[key] for key in kept if key in old}, **new}
    # The shorter side alone: networks differ in what their sides are multiples of.
    size = old.get("input_size")
    return {**({"input_size": min(size)} if isinstance(size, (list, tuple)) else {}), **new}
