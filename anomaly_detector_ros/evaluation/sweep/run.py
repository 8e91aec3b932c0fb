"""Variants of a profile measured beside each other: quality against network passes."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from anomaly_detector_ros.benchmarking.rate import pass_flops
from anomaly_detector_ros.benchmarking.timing import Passes, counting
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.evaluation.cached import CachedParts
from anomaly_detector_ros.evaluation.metrics.measures import Metrics, differences, plain
from anomaly_detector_ros.evaluation.run import Evaluation
from anomaly_detector_ros.evaluation.sweep.variants import Variant
from anomaly_detector_ros.evaluation.table.methods import Method, Synthesis, row_of
from anomaly_detector_ros.evaluation.table.report import line, number, subset_note, versions
from anomaly_detector_ros.profiles import Profile
from anomaly_detector_ros.runtime.statistics import Interval
from anomaly_detector_ros.synthesis.denoisers.unet import UnetDenoiser
from anomaly_detector_ros.synthesis.schedule import Schedule

BACKWARD_PASSES = 2
"""What a backward pass counts beside its forward pass, which makes 3 of the two together."""

QUALITIES = {"auc_pr": "AUC-PR", "f1_star": "F1*"}
"""What is weighed against network passes, and its title."""


@dataclass(frozen=True)
class Measured:
    """A variant and what came of it.

    Attributes:
        variant: which.
        metrics: on the data set.
        cost: of the edits of one image.
        relative_multiply_adds: of the denoiser, over those of the profile itself.
        gain: 95% interval of its AUC-PR minus the profile's, on the same resamples.
        pareto: the `QUALITIES` in which no variant with as few passes is better.
        images_seen: in training, by the denoiser; None where its directory does not say.
    """

    variant: Variant
    metrics: Metrics
    cost: Cost
    relative_multiply_adds: float
    gain: Interval
    pareto: tuple[str, ...]
    images_seen: int | None

    def best_in(self) -> str:
        """`pareto` for people."""
        return ", ".join(QUALITIES[quality] for quality in self.pareto)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.variant.name,
            "changes": dict(self.variant.changes),
            "passes": self.cost.passes,
            "forward_passes": self.cost.forward,
            "backward_passes": self.cost.backward,
            "multiply_adds": plain(self.cost.multiply_adds),
            "relative_multiply_adds": plain(self.relative_multiply_adds),
            "gain_in_auc_pr": plain(tuple(self.gain)),
            "pareto": plain(self.pareto),
            "images_seen": self.images_seen,
            **self.metrics.to_dict(),
        }


@dataclass(frozen=True)
class SweepReport:
    """What a sweep found.

    Attributes:
        dataset, profile: their names.
        seed: of baselines and resampling.
        measured: the variants in order, the profile itself first.
        references: metrics of rows of the paper's table, by name, to hold the variants against.
        dataset_images: how many images the data set has, of which some may have been left out.
        fitted_images: how many nominal images each kind of distance was fitted on.
    """

    dataset: str
    profile: str
    seed: int
    measured: Sequence[Measured]
    references: Mapping[str, Metrics]
    dataset_images: int
    fitted_images: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "dataset": self.dataset,
            "profile": self.profile,
            "seed": self.seed,
            "dataset_images": self.dataset_images,
            "fitted_images": dict(self.fitted_images),
            "versions": versions(),
            "variants": [each.to_dict() for each in self.measured],
            "references": [
                {"name": name, "title": row_of(name).title, **metrics.to_dict()}
                for name, metrics in self.references.items()
            ],
        }

    def to_markdown(self) -> str:
        """A table of the variants, numbered as in the plot, then the references."""
        head = ["#", "variant", "AUC-PR", "95% interval", "minus the profile's", "AUROC", "FPR95",
                "F1*", "passes", "multiply-adds", "Pareto-optimal in"]  # fmt: skip
        lines = [line(head), line(["---"] * len(head))]
        for index, each in enumerate(self.measured):
            numbers = [f"{each.cost.passes}", _times(each.relative_multiply_adds)]
            gain = "" if index == 0 else _span(each.gain)
            quality = _quality_cells(each.metrics, gain)
            lines.append(line([str(index), each.variant.name, *quality, *numbers, each.best_in()]))
        for name, metrics in self.references.items():
            lines.append(line(["", row_of(name).title, *_quality_cells(metrics, ""), "", "", ""]))
        lines.append(
            f"\nPasses of an image through the denoiser for all its edits; one with a backward "
            f"pass counts {1 + BACKWARD_PASSES}. Multiply-adds are the denoiser's, relative to the "
            "profile's."
        )
        lines += [
            f"Distance {name}: fitted on {count} nominal images."
            for name, count in self.fitted_images.items()
        ]
        lines += subset_note((each.metrics for each in self.measured), self.dataset_images)
        return "\n".join(lines) + "\n"


def run_sweep(
    evaluation: Evaluation, variants: Sequence[Variant], references: Sequence[str] = ()
) -> SweepReport | None:
    """Measures variants of the evaluation's profile; None on all but the first of its processes.

    Distances that need it are fitted to each variant if the evaluation has nominal images; without
    them a calibration of just that variant is needed.

    Args:
        variants: the first one is what the others are held against.
        references: as `methods.row_of` takes them, measured beside them.

    Raises:
        UserError: weights or images are missing, or a setting is wrong.
    """
    methods = [_method(variant, evaluation) for variant in variants]
    others: list[Method] = evaluation.build(references)
    if not evaluation.measure([*methods, *others]):
        return None
    costs = [cost_of(method.detector, evaluation.parts) for method in methods]
    metrics = {name: m.result() for name, m in evaluation.measurements.items()}
    return SweepReport(
        dataset=evaluation.data.name,
        profile=evaluation.profile.name,
        seed=evaluation.seed,
        measured=_put_together(variants, evaluation, metrics, costs),
        references={other.name: metrics[other.name] for other in others},
        dataset_images=len(evaluation.data),
        fitted_images=_fitted_on(variants, evaluation),
    )


def pareto_optimal(costs: Sequence[float], qualities: Sequence[float]) -> list[bool]:
    """Which points no other beats: at most the cost and the quality higher, or cheaper and as good.

    >>> pareto_optimal([1, 2, 3, 3], [0.2, 0.1, 0.4, 0.3])
    [True, False, True, False]
    """
    points = list(zip(costs, qualities, strict=True))
    return [
        not math.isnan(quality)
        and not any(
            other >= quality and others_cost <= cost and (other, others_cost) != (quality, cost)
            for others_cost, other in points
        )
        for cost, quality in points
    ]


@dataclass(frozen=True)
class _Refitted(Synthesis):
    """A detector with a distance that is not its profile's calibration's."""

    fitted: Any = None

    @property
    def key(self) -> Any:
        return [super().key, self.fitted]


def _is_fitted(profile: Profile, evaluation: Evaluation) -> bool:
    return bool(evaluation.fits.images) and profile.parts.distance.fitted


def _fitted_on(variants: Sequence[Variant], evaluation: Evaluation) -> dict[str, int]:
    fitted = [v.profile for v in variants if _is_fitted(v.profile, evaluation)]
    counts = {p.distance["name"]: len(evaluation.fits.distance_images(p)) for p in fitted}
    return dict(sorted(counts.items()))


def _method(variant: Variant, evaluation: Evaluation) -> Synthesis:
    profile, parts = variant.profile, evaluation.parts
    parts.fetch(profile)
    if not _is_fitted(profile, evaluation):
        detector = Detector.from_parts(profile, parts, calibrated=False)
        return Synthesis(variant.name, detector, parts)
    profile = replace(profile, calibration={})
    distance, key = evaluation.fits.distance(profile)
    detector = Detector.from_parts(profile, parts, distance=distance, calibrated=False)
    return _Refitted(variant.name, detector, parts, key)


def _put_together(
    variants: Sequence[Variant],
    evaluation: Evaluation,
    metrics: Mapping[str, Metrics],
    costs: Sequence[Cost],
) -> list[Measured]:
    first = evaluation.measurements[variants[0].name]
    passes = [cost.passes for cost in costs]
    optimal = {
        quality: pareto_optimal(passes, [getattr(metrics[v.name], quality) for v in variants])
        for quality in QUALITIES
    }
    return [
        Measured(
            variant,
            metrics[variant.name],
            cost,
            cost.multiply_adds / costs[0].multiply_adds,
            differences(evaluation.measurements[variant.name], first).get(
                "auc_pr", Interval(math.nan, math.nan)
            ),
            tuple(quality for quality in QUALITIES if optimal[quality][index]),
            _images_seen(variant.profile),
        )
        for index, (variant, cost) in enumerate(zip(variants, costs, strict=True))
    ]


def _images_seen(profile: Profile) -> int | None:
    """What a snapshot of a training run says of itself; see `training.stage.Stage.save`."""
    if not profile.denoiser_is_path():
        return None
    file = Path(str(profile.denoiser["model"])).expanduser() / "snapshot.json"
    if not file.is_file():
        return None
    try:
        return int(json.loads(file.read_text())["images"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot read '{file}': remove it, or make the snapshot again") from error


def _quality_cells(metrics: Metrics, gain: str) -> list[str]:
    interval = metrics.intervals.get("auc_pr", Interval(math.nan, math.nan))
    return [
        number(metrics.auc_pr), _span(interval), gain, number(metrics.auroc),
        number(metrics.fpr95), number(metrics.f1_star),
    ]  # fmt: skip


def _span(interval: Interval) -> str:
    return f"{number(interval.low)} to {number(interval.high)}"


def _times(ratio: float) -> str:
    return "n/a" if math.isnan(ratio) else f"{ratio:.2f}"


@dataclass(frozen=True)
class Cost:
    """Of all edits of one image.

    Attributes:
        forward, backward: passes through the denoiser; each edit of the image has its own.
        multiply_adds: of the denoiser in these passes; NaN where torch does not run it.
    """

    forward: int
    backward: int
    multiply_adds: float

    @property
    def passes(self) -> int:
        """Network passes, one with a backward pass counting 3."""
        return self.forward + BACKWARD_PASSES * self.backward


def cost_of(detector: Detector, parts: CachedParts) -> Cost:
    """What the detector's edits of one image cost its denoiser."""
    passes = count_passes(detector)
    forward, backward = _pass_multiply_adds(detector, parts)
    total = passes.forward * forward
    # Where there is no backward pass its operations, which may be unknown, don't matter.
    total += passes.backward * backward if passes.backward else 0.0
    return Cost(passes.forward, passes.backward, total)


def count_passes(detector: Detector) -> Passes:
    """Passes in the edits of one image, counted on a network that costs nothing.

    How often a sampler asks its denoiser depends on its settings and on the schedule, not on what
    the network answers.
    """
    light = copy.copy(detector)
    light.denoiser = _GreyDenoiser(detector.denoiser.schedule)
    with counting(light) as passes:
        light.synthesize([np.full((8, 8, 3), 128, np.uint8)])
    return passes


class _GreyDenoiser:
    """What a network trained on grey pictures alone would be."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def __call__(self, x: Tensor, t: int) -> Tensor:
        return 0.0 * x  # and not zeros: the exact Jacobian differentiates


def _pass_multiply_adds(detector: Detector, parts: CachedParts) -> tuple[float, float]:
    """Of one image's forward and backward pass."""
    denoiser = detector.denoiser
    if not isinstance(denoiser, UnetDenoiser):
        return math.nan, math.nan
    size = tuple(detector.profile.denoiser["size"])
    key = parts.edits_key(detector.profile)[0]
    flops = parts.cache.array("flops", key, lambda: np.array(pass_flops(denoiser, size)))
    forward, backward = (flops / 2).tolist()
    return forward, backward
