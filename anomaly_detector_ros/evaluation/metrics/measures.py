"""All metrics of one method on one data set, from two passes over its anomaly maps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from anomaly_detector_ros.evaluation.metrics import pixels
from anomaly_detector_ros.evaluation.metrics.components import ComponentCounts, f1_star
from anomaly_detector_ros.evaluation.metrics.paper import PaperCounts
from anomaly_detector_ros.evaluation.metrics.pixels import Curve, PixelCounts, as_scores
from anomaly_detector_ros.runtime import statistics
from anomaly_detector_ros.runtime.statistics import Interval

MAX_THRESHOLDS = 2048
_AT_ONCE = 100


class Truth(Protocol):
    """What an image is labelled with; `datasets.LabelledImage` is one."""

    @property
    def anomaly(self) -> np.ndarray:
        """Bool (H, W), what is out of distribution."""

    @property
    def valid(self) -> np.ndarray:
        """Bool (H, W), False where the truth is void."""

    @property
    def labels(self) -> np.ndarray:
        """Integer (H, W), class ids >= 0."""


@dataclass(frozen=True)
class ClassShare:
    """How much of one class is flagged: its recall if it is anomalous, else its false alarms.

    Attributes:
        anomalous: whether the class is out of distribution.
        pixels: how many it has.
        flagged: the share of them at or above the threshold.
    """

    anomalous: bool
    pixels: int
    flagged: float


@dataclass(frozen=True)
class Metrics:
    """Metrics of one method; NaN where they are not defined or were not asked for.

    Attributes:
        auc_pr: average precision of pixels.
        envelope_auc_pr: area below the envelope of the precisions, see `pixels.envelope_area`.
        auroc: area under the ROC curve of pixels.
        fpr95: false-positive rate at 95% true-positive rate.
        f1_star: SegmentMeIfYouCan's component F1* at ``threshold``.
        weighted_auc_pr: the paper's, see `PaperCounts.auc_pr`.
        weighted_f1_star: the paper's, see `PaperCounts.f1_star`; another metric than ``f1_star``.
        threshold: the score with the best pixel F1 ...
        best_f1: ... and that F1.
        intervals: 95% bootstrap intervals over images, by the names above.
        per_class: shares flagged at ``threshold``, by the name of the class.
        anomaly_share: anomalous pixels over all that count; the AUC-PR of a random score.
        images: how many were measured.
    """

    auc_pr: float
    envelope_auc_pr: float
    auroc: float
    fpr95: float
    f1_star: float
    weighted_auc_pr: float
    weighted_f1_star: float
    threshold: float
    best_f1: float
    intervals: dict[str, Interval]
    per_class: dict[str, ClassShare]
    anomaly_share: float
    images: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON; see `plain`."""
        return dict(plain(asdict(self)))


class Measurement:
    """Takes every image twice: `add` all of them, then `add_components` all, in the same order.

    The threshold of the components is known only when all pixels are counted. Memory does not grow
    with the number of pixels; each image leaves 24 kB for the intervals.

    Args:
        class_names: by class id, for shares per class; without it there are none.
        class_frequencies: share of training images that hold a class, by class id, for the
            paper's weighted metrics; without it there are none.
        resamples: of the bootstrap.
        seed: of the bootstrap: methods measured on the same images with the same seed see the
            same resamples.
    """

    def __init__(
        self,
        *,
        class_names: Mapping[int, str] | None = None,
        class_frequencies: Mapping[int, float] | None = None,
        resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        self.class_names, self.class_frequencies = class_names, class_frequencies
        self.resamples, self.seed = resamples, seed
        self.pixels = PixelCounts()
        self.paper = None if class_frequencies is None else PaperCounts(class_frequencies)
        self.images = 0
        self._second: _SecondPass | None = None

    def add(self, scores: np.ndarray, truth: Truth) -> None:
        """Counts the pixels of one image.

        Args:
            scores: float (H, W), finite, higher is more anomalous.

        Raises:
            ValueError: a score is not finite, or sizes differ.
        """
        if self._second:
            raise ValueError("add() after add_components(): the threshold is already fixed")
        self.pixels.add(scores, truth.anomaly, truth.valid)
        if self.paper:
            self.paper.add(scores, truth.labels, truth.valid)
        self.images += 1

    def add_components(self, scores: np.ndarray, truth: Truth) -> None:
        """Counts the components and classes of one image, once `add` has had all images.

        Raises:
            ValueError: as `add`, or `add` had fewer images.
        """
        if not self._second:
            self._second = _SecondPass(self.pixels, self.paper)
        if self._second.images() == self.images:
            raise ValueError(f"add() had {self.images} images, add_components() has one more")
        self._second.add(
            as_scores(scores, truth.anomaly, truth.valid), truth, by_class=bool(self.class_names)
        )

    def curve(self) -> Curve:
        """For `plots.plot_curves`."""
        return self.pixels.curve()

    @cached_property
    def resampled(self) -> dict[str, np.ndarray]:
        """Each metric's values on the resamples, (resamples,).

        Empty without the second pass, for less than two images, or if a class is missing.

        Raises:
            ValueError: the second pass is not complete, or its scores or truths are others.
        """
        if not self._second or self.images < 2 or not self.curve().complete():
            return {}
        if self._second.images() < self.images:
            done = self._second.images()
            raise ValueError(f"add() had {self.images} images, add_components() only {done}")
        draws = statistics.draw(self.images, self.resamples, self.seed)
        return self._second.resampled(draws)

    def result(self) -> Metrics:
        """The metrics of everything added; what needs the second pass is NaN without it."""
        pixels, second, paper = self.pixels.result(), self._second, self.paper
        return Metrics(
            auc_pr=pixels.auc_pr,
            envelope_auc_pr=pixels.envelope_auc_pr,
            auroc=pixels.auroc,
            fpr95=pixels.fpr95,
            f1_star=second.components.f1_star() if second else np.nan,
            weighted_auc_pr=paper.auc_pr() if paper else np.nan,
            weighted_f1_star=paper.f1_star() if paper else np.nan,
            threshold=pixels.best_threshold,
            best_f1=pixels.best_f1,
            intervals={name: statistics.interval(of) for name, of in self.resampled.items()},
            per_class=second.per_class(self.class_names or {}) if second else {},
            anomaly_share=pixels.anomaly_share,
            images=self.images,
        )


def differences(a: Measurement, b: Measurement) -> dict[str, Interval]:
    """95% intervals of each metric of ``a`` minus that of ``b``, on the same resamples.

    An interval that leaves out 0 means that the images at hand suffice to tell the two apart.

    Raises:
        ValueError: they were not measured on the same number of images with the same seed.
    """
    for name in ("images", "resamples", "seed"):
        if getattr(a, name) != getattr(b, name):
            raise ValueError(f"paired resamples need the same {name} on both sides")
    shared = a.resampled.keys() & b.resampled.keys()
    return {
        name: statistics.interval(of - b.resampled[name])
        for name, of in a.resampled.items()
        if name in shared
    }


class _SecondPass:
    """What can be counted only when the pixels' curve is known."""

    def __init__(self, pixels: PixelCounts, paper: PaperCounts | None) -> None:
        self.threshold = np.float32(pixels.result().best_threshold)
        self.paper = paper
        self.components = ComponentCounts()
        self.curves = ImageCurves(pixels.curve())
        self.classes = np.zeros((3, 0), np.int64)  # pixels, anomalous, flagged; by class id

    def add(self, scores: np.ndarray, truth: Truth, *, by_class: bool) -> None:
        labels, anomaly, valid = truth.labels, truth.anomaly, truth.valid
        soft = self.paper.soft_labels(labels) if self.paper else None
        self.curves.add(scores, anomaly, valid, soft)
        flagged = scores >= self.threshold
        self.components.add(flagged, anomaly, valid)
        if by_class:
            chosen = (valid, valid & anomaly, valid & flagged)
            size = max(self.classes.shape[1], int(labels.max(initial=0)) + 1)
            counts = np.stack([np.bincount(labels[mask], minlength=size) for mask in chosen])
            counts[:, : self.classes.shape[1]] += self.classes
            self.classes = counts

    def images(self) -> int:
        return len(self.components.images)

    def resampled(self, draws: np.ndarray) -> dict[str, np.ndarray]:
        samples = self.curves.resampled(draws)
        samples["f1_star"] = resampled_f1_star(self.components.images, draws)
        if self.paper:
            samples["weighted_auc_pr"] /= self.paper.best_area(draws)
            samples["weighted_f1_star"] = self.paper.resampled_f1_star(draws)
        return samples

    def per_class(self, names: Mapping[int, str]) -> dict[str, ClassShare]:
        shares = {}
        for label in np.flatnonzero(self.classes[0]).tolist():
            pixels, anomalous, flagged = self.classes[:, label].tolist()
            name = names.get(label, str(label))
            shares[name] = ClassShare(anomalous > 0, pixels, flagged / pixels)
        return shares


def plain(value: Any) -> Any:
    """The value for JSON, which knows no NaN: None takes its place."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def resampled_f1_star(images: list[np.ndarray], draws: np.ndarray) -> np.ndarray:
    """Component F1* of each resample, (resamples,), from `ComponentCounts.images`."""
    return f1_star(np.tensordot(draws, np.stack(images).astype(np.float64), 1))


class ImageCurves:
    """Each image's cumulative counts at thresholds that all images share, for the bootstrap.

    How far would a metric move on another draw of such images? Pixels of one image are alike, so
    whole images are resampled (Efron & Tibshirani 1993, percentile interval). A resample is how
    often it holds each image; its counts are sums of the images' counts times these numbers, so no
    pixel is touched again. Frames of one video are alike too: intervals over such images are too
    narrow, not too wide.

    At most `MAX_THRESHOLDS`, at quantiles of the scores of anomalous and of nominal pixels, as
    many of either, so that both the recall and the false-positive rate take small steps. Where
    there are no more different scores than that, resampling is exact.

    Args:
        pooled: the curve of everything that will be added.
    """

    def __init__(self, pooled: Curve) -> None:
        chosen = _spread(pooled)
        self.thresholds = pooled.thresholds[chosen]
        self._pooled = np.stack([pooled.anomalous[chosen], pooled.nominal[chosen]])
        self._images: list[np.ndarray] = []

    def add(
        self,
        scores: np.ndarray,
        anomaly: np.ndarray,
        valid: np.ndarray,
        soft: np.ndarray | None = None,
    ) -> None:
        """Adds one image: float32, bool, bool and float arrays (H, W)."""
        masks = [valid & anomaly, valid & ~anomaly]
        rows = [_reaching(scores[mask], self.thresholds) for mask in masks]
        if soft is not None:
            rows.append(_reaching(scores[valid], self.thresholds, soft[valid]))
        # Counts are exact: one image has fewer than 2^24 pixels.
        self._images.append(np.stack(rows).astype(np.float32))

    def resampled(self, draws: np.ndarray) -> dict[str, np.ndarray]:
        """Metrics of each resample, (resamples,): auc_pr, envelope_auc_pr, auroc and fpr95.

        If soft labels were added, the area that is the numerator of weighted_auc_pr too.

        Args:
            draws: as `draw` returns, (resamples, images).

        Raises:
            ValueError: the images together are not what the pooled curve counted.
        """
        images = np.stack(self._images).astype(np.float64)
        if not np.array_equal(images[:, :2].sum(0), self._pooled):
            raise ValueError("scores or truth differ between the two passes over the images")
        parts = []
        for chunk in np.split(draws, range(_AT_ONCE, len(draws), _AT_ONCE)):
            parts.append(_metrics(*np.tensordot(chunk, images, 1).swapaxes(0, 1)))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _spread(curve: Curve) -> np.ndarray:
    """Rising indices of at most `MAX_THRESHOLDS` points of a curve, the last one among them."""
    if len(curve.thresholds) <= MAX_THRESHOLDS:
        return np.arange(len(curve.thresholds))
    shares = np.linspace(0, 1, MAX_THRESHOLDS // 2 + 1)[1:]
    counts = (curve.anomalous, curve.nominal)
    return np.unique([np.searchsorted(of, shares * of[-1]) for of in counts])


def _reaching(
    scores: np.ndarray, thresholds: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """How many scores (or how much of their weights) reach each threshold, float64 (T,)."""
    if weights is None:
        below = np.searchsorted(np.sort(scores), thresholds).astype(np.float64)
        return np.asarray(len(scores) - below)
    order = np.argsort(scores)
    below = np.append(0, np.cumsum(weights[order]))
    return np.asarray(below[-1] - below[np.searchsorted(scores[order], thresholds)])


def _metrics(
    true: np.ndarray, false: np.ndarray, soft: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Metrics of curves (resamples, T)."""
    metrics = {
        "auc_pr": pixels.average_precision(true, false),
        "envelope_auc_pr": pixels.envelope_area(true, false),
        "auroc": pixels.auroc(true, false),
        "fpr95": pixels.fpr_at_tpr(true, false),
    }
    if soft is not None:
        metrics["weighted_auc_pr"] = pixels.envelope_area(soft, true + false - soft)
    return metrics
