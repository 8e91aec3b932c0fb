"""The rows of the paper's table, built by name around one profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from anomaly_detector_ros.baselines.base import BASELINES, FittedBaseline
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
FitBaseline = Callable[[str, Settings], tuple[FittedBaseline, Any]]

# Guidance scales of the published code: what suits one guidance is too weak or strong for another.
GUIDANCE_SCALES = {"reverse": 1e4, "forward": 1e5, "mismatched": 7e4}


@dataclass(frozen=True)
class Row:
    """One row: how it differs from the profile it is built around.

    Attributes:
        title: what the tables call it.
        published: the paper's AUC-PR and F1* by data set; none for rows that it does not have.
        kind: synthesis, ssim, rgb, perfect, baseline or random; see `methods`.
        overrides: changes to the profile, by part.
    """

    title: str
    published: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    kind: str = "synthesis"
    overrides: Mapping[str, Settings] = field(default_factory=dict)


def _paper(
    title: str,
    rugd: tuple[float, float],
    rellis: tuple[float, float],
    kind: str = "synthesis",
    **overrides: Settings,
) -> Row:
    return Row(title, {"rugd": rugd, "rellis": rellis}, kind, overrides)


ROWS: Mapping[str, Row] = {
    "ssim": _paper("SSIM of input and edit", (0.293, 0.410), (0.278, 0.506), "ssim"),
    "gmm": _paper("Gaussian mixture", (0.554, 0.587), (0.549, 0.534), "baseline"),
    "nearest": _paper("Nearest neighbour", (0.705, 0.629), (0.536, 0.498), "baseline"),
    "flow": _paper("Normalizing flow", (0.616, 0.596), (0.541, 0.545), "baseline"),
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
    "rgb": _paper("RGB in place of features", (0.302, 0.591), (0.144, 0.482), "rgb"),
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
    return Row(BASELINES.get(name).name, kind="baseline")


def build_method(name: str, profile: Profile, parts: CachedParts, fit: FitBaseline) -> Method:
    """The method of one row around a profile.

    Args:
        name: see `row_of`.
        fit: gives the fitted baseline of a name on an extractor's features, and its key.

    Raises:
        UserError: unknown row, or weights that it needs cannot be had.
    """
    row = row_of(name)
    if row.kind == "random":
        return RandomScores()
    changed = with_overrides(profile, row.overrides)
    parts.fetch(changed)
    detector = Detector.from_parts(changed, parts, calibrated=False)
    if row.kind == "baseline":
        baseline, key = fit(name, changed.features)
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
