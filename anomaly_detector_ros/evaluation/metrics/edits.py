"""How good edits are, whatever is made of them afterwards: sharp, nominal, and changed where due.

Everything is measured on feature maps, so that two spaces of edits compare in the same one.
Vectors are brought to unit length throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly_detector_ros.distances.cosine import cosine_distance
from anomaly_detector_ros.distances.novelty import memory_distance
from anomaly_detector_ros.evaluation.metrics.components import MIN_TRUTH, connected
from anomaly_detector_ros.runtime import statistics
from anomaly_detector_ros.runtime.statistics import Interval

NOMINAL_QUANTILE = 0.95
"""What is at most this quantile of held-out nominal patches from the memory looks nominal."""

_PATCHES = 128
_RESAMPLES = 1000


def gradient_energy(images: Tensor) -> Tensor:
    """Mean absolute difference of grey neighbours, down plus across, of images (B, 3, H, W): (B,).

    >>> gradient_energy(torch.tensor([[0.0, 1.0], [0.0, 1.0]]).expand(1, 3, 2, 2))
    tensor([1.])
    """
    grey = images.mean(1)
    return grey.diff(dim=1).abs().mean((1, 2)) + grey.diff(dim=2).abs().mean((1, 2))


def kernel_means(a: Tensor, b: Tensor) -> np.ndarray:
    """The mean of (x.y / C + 1)^3 over the vectors x, y of every pair of frames, float64 (A, B).

    Args:
        a: (A, n, C), n vectors of each frame.
        b: (B, m, C).
    """
    every = b.flatten(0, 1).T
    rows = [
        (frame @ every / a.shape[2] + 1).pow(3).view(len(frame), len(b), -1).mean((0, 2))
        for frame in a
    ]
    return torch.stack(rows).double().cpu().numpy()


@dataclass(frozen=True)
class KernelDistance:
    """KID (Binkowski et al. 2018) of the patches of two sets of frames, X and Y.

    The squared maximum mean discrepancy with the kernel (x.y / C + 1)^3. Patches of one frame are
    alike, so no pair of them enters: frames are what is drawn, and the estimate is unbiased. It
    may fall below 0 where the sets are alike.

    Args:
        xx, yy, xy: `kernel_means` of X with itself, Y with itself, and X with Y.
        paired: whether frame i of X is an edit of frame i of Y, a pair that is left out as well.
    """

    xx: np.ndarray
    yy: np.ndarray
    xy: np.ndarray
    paired: bool = False

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The distance of each resample, (R,); NaN where a set holds one frame alone.

        Args:
            x: how often each resample holds each frame of X, (R, X).
            y: the same of Y, (R, Y).
        """
        across = np.ones(self.xy.shape) - (np.eye(len(self.xy)) if self.paired else 0)
        return np.asarray(
            _mean(self.xx, 1 - np.eye(len(self.xx)), x, x)
            + _mean(self.yy, 1 - np.eye(len(self.yy)), y, y)
            - 2 * _mean(self.xy, across, x, y)
        )


def _mean(values: np.ndarray, used: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean over the pairs that are used, each as often as both resamples hold it: (R,)."""
    with np.errstate(invalid="ignore"):
        return np.asarray(((x @ (values * used)) * y).sum(1) / ((x @ used) * y).sum(1))


@dataclass(frozen=True)
class EditedFrame:
    """Features of one frame and of its edits, all of the same height and width.

    Attributes:
        image: (C, h, w), of the image as the camera gave it.
        original: (C, h, w), of what was edited: smaller, or back from an autoencoder.
        edits: (K, C, h, w).
        sharpness: `gradient_energy` of the edits over that of the image at their size, their mean.
        frame_sharpness: the same of edits that are brought to the image's size.
    """

    image: Tensor
    original: Tensor
    edits: Tensor
    sharpness: float
    frame_sharpness: float


@dataclass(frozen=True)
class EditQuality:
    """What edits are like; NaN where there is nothing to measure.

    Patches are the cells of the feature map. A change is 1 - cos between a patch of an edit and
    the same patch of what was edited, so errors of an autoencoder that both went through cancel.

    Attributes:
        kid: kernel distance of edits of nominal frames to the other nominal frames ...
        kid_anomalous: ... of edits of the labelled frames to nominal frames ...
        kid_unedited: ... and of the labelled frames themselves, for comparison.
        sharpness: mean gradient energy of edits of nominal frames over that of the frames, at the
            edits' size ...
        frame_sharpness: ... and at the frames', where small edits are no sharper than they look.
        nominal_change: mean change on nominal frames ...
        nominal_change_p99: ... and its 99th percentile.
        anomaly_change: mean change on labelled anomalies.
        beside_change: mean change on the nominal pixels of the same frames.
        contrast: ``anomaly_change`` over ``nominal_change``.
        removal: share of the labelled anomalies whose place in the edit looks nominal.
        unedited_nominal: share of them that look so before.
        intervals: 95% bootstrap intervals over frames, by the names above; none for a single frame.
        nominal_distance: the distance from the memory up to which a place looks nominal: the
            `NOMINAL_QUANTILE` of patches of nominal frames. An anomaly's is the mean of its
            patches, each counted by its share of the anomaly.
        anomalies: how many there are: 8-connected components of `MIN_TRUTH` pixels and more.
        nominal_frames, labelled_frames: how many were measured.
    """

    kid: float
    kid_anomalous: float
    kid_unedited: float
    sharpness: float
    frame_sharpness: float
    nominal_change: float
    nominal_change_p99: float
    anomaly_change: float
    beside_change: float
    contrast: float
    removal: float
    unedited_nominal: float
    intervals: dict[str, Interval]
    nominal_distance: float
    anomalies: int
    nominal_frames: int
    labelled_frames: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass
class _Nominal:
    """What each nominal frame leaves."""

    sharpness: list[tuple[float, float]] = field(default_factory=list)  # at both sizes
    changes: list[np.ndarray] = field(default_factory=list)
    distances: list[np.ndarray] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    edits: list[Tensor] = field(default_factory=list)


@dataclass
class _Labelled:
    """What each labelled frame leaves."""

    sums: list[np.ndarray] = field(default_factory=list)  # change, weight; anomaly, beside
    places: list[np.ndarray] = field(default_factory=list)  # (1 + K, components): memory distance
    images: list[Tensor] = field(default_factory=list)
    edits: list[Tensor] = field(default_factory=list)


class EditMeasurement:
    """Takes nominal frames and labelled ones, each with its edits, in any order.

    Args:
        memory: (M, C) feature vectors of nominal frames other than those measured.
        resamples: of the bootstrap. Nominal and labelled frames are resampled apart; the distance
            up to which a place looks nominal stays.
        seed: of the bootstrap, and of the patches that the kernel distance looks at.
    """

    def __init__(self, memory: Tensor, *, resamples: int = _RESAMPLES, seed: int = 0) -> None:
        self.memory = F.normalize(memory.float(), dim=1)
        self.resamples, self.seed = resamples, seed
        self._nominal, self._labelled = _Nominal(), _Labelled()

    def add_nominal(self, frame: EditedFrame) -> None:
        """Adds a frame that holds nothing unusual."""
        kept = self._nominal
        kept.sharpness.append((frame.sharpness, frame.frame_sharpness))
        kept.changes.append(_numpy(cosine_distance(frame.original[None], frame.edits)))
        kept.distances.append(_numpy(memory_distance(frame.image[None], self.memory)))
        self._add_patches(frame, kept.images, kept.edits)

    def add_labelled(self, frame: EditedFrame, anomaly: np.ndarray, valid: np.ndarray) -> None:
        """Adds a frame with its truth, bool (H, W) each, of any size."""
        kept = self._labelled
        change = _numpy(cosine_distance(frame.original[None], frame.edits)).mean(0)
        size = (change.shape[0], change.shape[1])
        weights = [_shares(mask, size) for mask in (anomaly & valid, ~anomaly & valid)]
        kept.sums.append(np.array([[(w * change).sum(), w.sum()] for w in weights]))
        components, _ = connected(anomaly & valid, MIN_TRUTH)
        distances = _numpy(
            memory_distance(torch.cat([frame.image[None], frame.edits]), self.memory)
        )
        shares = [_shares(components == number, size) for number in range(1, components.max() + 1)]
        places = [(share * distances).sum((1, 2)) / share.sum() for share in shares]
        kept.places.append(np.stack(places, 1) if places else np.zeros((len(distances), 0)))
        self._add_patches(frame, kept.images, kept.edits)

    def _add_patches(self, frame: EditedFrame, images: list[Tensor], edits: list[Tensor]) -> None:
        """Keeps some patches of the image, and the same ones of its edits."""
        cells = frame.image[0].numel()
        rng = np.random.default_rng([self.seed, len(images)])
        chosen = torch.from_numpy(rng.permutation(cells)[:_PATCHES]).to(frame.image.device)
        for kept, maps in ((images, frame.image[None]), (edits, frame.edits)):
            vectors = maps.float().flatten(2)[:, :, chosen].transpose(1, 2).flatten(0, 1)
            # x.y / C is the cosine.
            kept.append(F.normalize(vectors, dim=1) * vectors.shape[1] ** 0.5)

    def result(self) -> EditQuality:
        """The quality of everything added; intervals where there are two frames of either kind.

        Raises:
            ValueError: no frame of one kind.
        """
        nominal, labelled = len(self._nominal.changes), len(self._labelled.sums)
        if not (nominal and labelled):
            raise ValueError(f"{nominal} nominal and {labelled} labelled frames: add one of each")
        distances = np.concatenate([of.ravel() for of in self._nominal.distances])
        limit = float(np.quantile(distances, NOMINAL_QUANTILE))
        metrics = _Metrics(self._nominal, self._labelled, limit)
        values = metrics(np.ones((1, nominal)), np.ones((1, labelled)))
        # Another seed for the second: the two are drawn apart.
        resampled = metrics(
            statistics.draw(nominal, self.resamples, self.seed),
            statistics.draw(labelled, self.resamples, self.seed + 1),
        )
        return EditQuality(
            **{name: float(of[0]) for name, of in values.items()},
            intervals={name: statistics.interval(of) for name, of in resampled.items()}
            if min(nominal, labelled) > 1
            else {},
            nominal_distance=limit,
            anomalies=sum(places.shape[1] for places in self._labelled.places),
            nominal_frames=nominal,
            labelled_frames=labelled,
        )


class _Metrics:
    """The metrics of resamples: (R,) each, of how often they hold each frame."""

    def __init__(self, nominal: _Nominal, labelled: _Labelled, limit: float) -> None:
        self.sharpness = np.array(nominal.sharpness)
        self.changes = [of.ravel() for of in nominal.changes]
        self.sums = np.stack(labelled.sums)
        found = [(places <= limit).sum(1) for places in labelled.places]
        self.removed = np.array([[of[1:].mean(), of[0]] for of in found])
        self.anomalies = np.array([places.shape[1] for places in labelled.places])
        self.kernels = _kernel_distances(nominal, labelled)

    def __call__(self, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
        changes = np.array([of.mean() for of in self.changes])
        sizes = np.array([of.size for of in self.changes])
        with np.errstate(invalid="ignore"):
            sharpness = x @ self.sharpness / x.sum(1, keepdims=True)
            nominal = x @ (changes * sizes) / (x @ sizes)
            sums = np.tensordot(y, self.sums, 1)
            anomaly, beside = (sums[..., 0] / sums[..., 1]).T
            removal, before = (y @ self.removed / (y @ self.anomalies)[:, None]).T
            contrast = anomaly / nominal
        kid, kid_anomalous, kid_unedited = self.kernels
        return {
            "kid": kid(x, x),
            "kid_anomalous": kid_anomalous(y, x),
            "kid_unedited": kid_unedited(y, x),
            "sharpness": sharpness[:, 0],
            "frame_sharpness": sharpness[:, 1],
            "nominal_change": nominal,
            "nominal_change_p99": _quantile(self.changes, x, 0.99),
            "anomaly_change": anomaly,
            "beside_change": beside,
            "contrast": contrast,
            "removal": removal,
            "unedited_nominal": before,
        }


def _kernel_distances(nominal: _Nominal, labelled: _Labelled) -> list[KernelDistance]:
    """Those of edits of nominal frames, of edits of labelled frames and of these as they are."""
    known, edited, anomalous, unedited = map(
        torch.stack, (nominal.images, nominal.edits, labelled.edits, labelled.images)
    )
    pairs = ((edited, True), (anomalous, False), (unedited, False))
    among = kernel_means(known, known)
    return [
        KernelDistance(kernel_means(of, of), among, kernel_means(of, known), paired)
        for of, paired in pairs
    ]


def _quantile(values: Sequence[np.ndarray], counts: np.ndarray, share: float) -> np.ndarray:
    """The quantile of each resample's values: (R,).

    Args:
        values: of each frame.
        counts: how often each resample holds each frame, (R, frames).
    """
    frames = np.repeat(np.arange(len(values)), [of.size for of in values])
    pooled = np.concatenate(values)
    order = np.argsort(pooled)
    pooled, frames = pooled[order], frames[order]
    cumulative = (np.cumsum(row[frames]) for row in counts)
    return np.array([pooled[np.searchsorted(of, share * of[-1])] for of in cumulative])


def _shares(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The share of a mask (H, W) in each cell of a grid (h, w): float64 (h, w)."""
    small = cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float64)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()
