"""From a profile's sampler settings to the function that edits images."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.synthesis.denoisers.base import Denoiser
from anomaly_detector_ros.synthesis.guidance import (
    forward_matching,
    mismatched,
    reverse_matching,
)
from anomaly_detector_ros.synthesis.samplers import algorithm1, few_step
from anomaly_detector_ros.synthesis.similarity import (
    ChangedFractionSimilarity,
    GaussianSimilarity,
    L1Similarity,
)


class Sampler(Protocol):
    """Edits images so that they become likely under what the denoiser was trained on."""

    def __call__(
        self,
        denoiser: Denoiser,
        x_input: Tensor,
        *,
        initial_noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Edits of ``x_input``, both float (B, C, H, W) in [-1, 1]; edits may leave the range."""
        ...


SAMPLERS = ("few_step", "algorithm1")
GUIDANCES = ("reverse", "mismatched", "forward")
JACOBIANS = ("identity", "exact")
SIMILARITIES = {
    "gaussian": GaussianSimilarity,
    "l1": L1Similarity,
    "changed_fraction": ChangedFractionSimilarity,
}

# num_edits and seed belong to whoever calls the sampler.
_COMMON = ("name", "guidance", "jacobian", "similarity", "guidance_scale", "num_edits", "seed")
_FEW_STEP = ("noise_level", "steps", "data_std")
_CHANGED_FRACTION = ("width", "steepness")
# How many numbers a setting has, what they must be, and the same in words.
_NUMBERS: dict[str, tuple[int, Callable[[float], bool], str]] = {
    "guidance_scale": (1, lambda v: 0 <= v < math.inf, "a number of at least 0"),
    "noise_level": (1, lambda v: 0 < v <= 1, "a number above 0, at most 1"),
    "steps": (1, lambda v: v >= 1 and v.is_integer(), "a whole number of at least 1"),
    "data_std": (1, lambda v: 0 < v < math.inf, "a positive number"),
    "width": (2, lambda v: 0 < v < math.inf, "two positive numbers, [first, last]"),
    "steepness": (2, lambda v: 0 < v < math.inf, "two positive numbers, [first, last]"),
}


def make_sampler(settings: Mapping[str, Any]) -> Sampler:
    """The sampler that a profile's ``sampler`` part describes.

    Settings:
        name: ``few_step`` or ``algorithm1``; the only one without a default.
        guidance: ``reverse`` (default), ``mismatched`` or ``forward``; see `synthesis.guidance`.
        jacobian: ``identity`` (default) or ``exact``; for reverse matching.
        similarity: ``gaussian`` (default), ``l1`` or ``changed_fraction``; see
            `synthesis.similarity`.
        guidance_scale: 0 by default: nothing holds the edit to the input.
        noise_level, steps, data_std: of ``few_step``; see `samplers.few_step`.
        width, steepness: of ``changed_fraction``, each [first, last].

    Raises:
        UserError: a setting is unknown or its value is out of range.

    Example:
        >>> sampler = make_sampler({"name": "few_step", "steps": 3, "guidance_scale": 1e4})
    """
    name = _choice(settings, "name", SAMPLERS, "sampler")
    kernel = _choice({"similarity": "gaussian", **settings}, "similarity", SIMILARITIES)
    own = _FEW_STEP if name == "few_step" else ()
    shape = _CHANGED_FRACTION if kernel == "changed_fraction" else ()
    known = {*_COMMON, *own, *shape}
    unknown = {str(key) for key in settings} - known
    if unknown:
        raise UserError(
            f"sampler {name} has no setting '{min(unknown)}' with similarity {kernel}: "
            f"known are {', '.join(sorted(known))}"
        )
    guidance = _choice({"guidance": "reverse", **settings}, "guidance", GUIDANCES)
    jacobian = _choice({"jacobian": "identity", **settings}, "jacobian", JACOBIANS)
    (scale,) = _numbers({"guidance_scale": 0.0, **settings}, "guidance_scale")
    similarity = SIMILARITIES[kernel](
        scale, **{key: _numbers(settings, key) for key in shape if key in settings}
    )
    if name == "algorithm1":
        gradients = {
            "reverse": partial(reverse_matching, jacobian=jacobian),
            "mismatched": mismatched,
            "forward": forward_matching,
        }
        return partial(algorithm1, similarity=similarity, guidance=gradients[guidance])
    options = {key: _numbers(settings, key)[0] for key in own if key in settings}
    if "steps" in options:
        options["steps"] = int(options["steps"])
    return partial(few_step, similarity=similarity, guidance=guidance, jacobian=jacobian, **options)


def _choice(
    settings: Mapping[str, Any], key: str, names: Collection[str], what: str | None = None
) -> str:
    value = settings.get(key)
    if value not in tuple(names):
        raise UserError(f"unknown {what or key} '{value}': choose one of {', '.join(names)}")
    return value


def _numbers(settings: Mapping[str, Any], key: str) -> tuple[float, ...]:
    count, valid, wanted = _NUMBERS[key]
    given = settings[key] if count > 1 else [settings[key]]
    if isinstance(given, (list, tuple)) and len(given) == count:
        numbers = tuple(map(_number, given))
        if all(map(valid, numbers)):
            return numbers
    raise UserError(f"sampler setting '{key}' is {settings[key]!r}: give {wanted}")


def _number(value: Any) -> float:
    """A number, also as the text that YAML takes 1e4 for; anything else is not a number."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan
