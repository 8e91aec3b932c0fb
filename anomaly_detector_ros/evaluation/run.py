"""An evaluation from beginning to end: methods, their maps shared out, metrics, a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.evaluation.cached import CachedParts
from anomaly_detector_ros.evaluation.datasets.base import Dataset, LabelledImage
from anomaly_detector_ros.evaluation.fits import Fits
from anomaly_detector_ros.evaluation.metrics.measures import Measurement, differences
from anomaly_detector_ros.evaluation.table.frames import MeasuredFrame, measured_frame
from anomaly_detector_ros.evaluation.table.gallery import Panels, gallery
from anomaly_detector_ros.evaluation.table.methods import Method, Synthesis, build_method, row_of
from anomaly_detector_ros.evaluation.table.plots import plot_curves
from anomaly_detector_ros.evaluation.table.report import Report
from anomaly_detector_ros.profiles import Profile
from anomaly_detector_ros.runtime.progress import Progress, silent
from anomaly_detector_ros.runtime.tensors import to_pictures
from anomaly_detector_ros.sources.tally import Tally

GALLERY_ROWS = 6


class Evaluation:
    """Rows of the paper's table around one profile, measured on one data set.

    With several processes (``accelerate launch``, ``torchrun``) each computes its share of the maps
    and the first one measures them all; they must share the cache's directory.

    Args:
        profile: what the rows are built around.
        parts: loads models and keeps what they compute.
        data: labelled images.
        nominal: nominal images that the baselines are fitted on and whose classes give the
            paper's soft labels; without them these and the metrics on them are left out.
        baselines: how they are made: a key of `methods.PRESETS`.
        count: use only so many of the labelled images, evenly spread; all by default.
        seed: of the baselines and of the intervals.
        tally: counts the images; those on which a method's models fail are left out of all
            methods. By default such a one is an error.
        progress: called with (done, total, what is being done).
    """

    def __init__(
        self,
        profile: Profile,
        parts: CachedParts,
        data: Dataset,
        nominal: Dataset | None = None,
        *,
        baselines: str = "ours",
        count: int | None = None,
        seed: int = 0,
        tally: Tally | None = None,
        progress: Progress = silent,
    ) -> None:
        self.tally = tally or Tally(stop=True)
        self._failed: set[int] = set()
        self.profile, self.parts, self.cache = profile, parts, parts.cache
        self.data, self.nominal, self.seed = data, nominal, seed
        self.baselines = baselines
        self.indices = spread(len(data), len(data) if count is None else count)
        self.progress = progress
        self.methods: list[Method] = []
        self.not_run: dict[str, str] = {}
        self.measurements: dict[str, Measurement] = {}

    @cached_property
    def fits(self) -> Fits:
        """What is fitted to the nominal images."""
        images = self.nominal.image_files() if self.nominal else []
        return Fits(self.parts, images, self.seed, self.progress)

    def run(self, names: Sequence[str], *, strict: bool = True) -> Report | None:
        """Measures the named rows; None on all but the first of several processes.

        Args:
            names: as `methods.row_of` takes them.
            strict: a row that cannot be run is an error, not a line of the report.

        Raises:
            UserError: an unknown row, or (if strict) one whose weights or images are missing.
        """
        if not self.measure(self.build(names, strict=strict)):
            return None
        ours = self.measurements.get("ours")
        others = {name: m for name, m in self.measurements.items() if name != "ours"}
        return Report(
            dataset=self.data.name,
            profile=self.profile.name,
            seed=self.seed,
            baselines=self.baselines,
            metrics={name: m.result() for name, m in self.measurements.items()},
            ours_minus={name: differences(ours, m) for name, m in others.items()} if ours else {},
            not_run=self.not_run,
            train_images=len(self.nominal) if self.nominal else 0,
            dataset_images=len(self.data),
        )

    def build(self, names: Sequence[str], *, strict: bool = True) -> list[Method]:
        """The methods of the named rows; with `strict` False without those that cannot be run.

        Raises:
            UserError: see `run`.
        """
        methods = []
        for name in names:
            try:
                methods.append(
                    build_method(name, self.profile, self.parts, self.fits.baseline, self.baselines)
                )
            except UserError as error:
                if strict:
                    raise
                self.not_run[name] = one_line(error, 300)
        return methods

    def measure(self, methods: Sequence[Method]) -> bool:
        """Makes the maps of these methods and fills ``measurements``, by their names.

        False on all but the first of several processes, which make maps alone.
        """
        self.methods = list(methods)
        self._make_maps()
        if not PartialState().is_main_process:
            return False
        self._measure()
        return True

    def _make_maps(self) -> None:
        """Computes this process's share of the maps and waits for the other processes."""
        state = PartialState()
        share = self.indices[state.process_index :: state.num_processes]
        total = len(share) * len(self.methods)
        for done, index in enumerate(share):
            self._maps(index, partial(self._tell, done * len(self.methods), total))
        state.wait_for_everyone()

    def _tell(self, before: int, total: int, made: int) -> None:
        self.progress(before + made, total, "anomaly maps")

    def _maps(
        self, index: int, made: Callable[[int], object] = lambda _: None
    ) -> tuple[LabelledImage, list[np.ndarray]] | None:
        """An image and its map by each method; None where one fails on it.

        Args:
            index: of the image.
            made: called after each map with their number.
        """
        if index in self._failed:
            return None
        truth = self.data[index]
        maps: list[np.ndarray] = []
        for method in self.methods:
            found = self.tally.tried(f"'{truth.file}'", self.anomaly_map, method, truth)
            if found is None:
                self._failed.add(index)
                return None
            maps.append(found)
            made(len(maps))
        return truth, maps

    def anomaly_map(self, method: Method, truth: LabelledImage) -> np.ndarray:
        """The method's map of one image, float32 (H, W), from the cache if it is there."""
        # The labels too: the ceiling's edit is made from them.
        key = [method.key, self.parts.digest(truth.image), self.parts.digest(truth.labels)]
        return self.cache.array("maps", key, lambda: method.anomaly_map(truth))

    def _measure(self) -> None:
        """One pass over the maps for pixels, and one for components.

        The threshold of the components is known only when all pixels are counted.
        """
        # Another data set has other classes, whose frequencies say nothing about these.
        known = self.nominal is not None and self.nominal.name == self.data.name
        frequencies = (
            self.nominal.class_frequencies(self.progress) if self.nominal and known else None
        )
        self.measurements = {
            method.name: Measurement(
                class_names=self.data.classes.names, class_frequencies=frequencies, seed=self.seed
            )
            for method in self.methods
        }
        passes = (
            (Measurement.add, "pixel metrics"),
            (Measurement.add_components, "component metrics"),
        )
        for add, doing in passes:
            for done, index in enumerate(self.indices, 1):
                if (found := self._maps(index)) is not None:
                    truth, maps = found
                    for method, scores in zip(self.methods, maps, strict=True):
                        add(self.measurements[method.name], scores, truth)
                self.progress(done, len(self.indices), doing)
            self.tally.processed = len(self.indices) - len(self._failed)
            self.tally.check()

    def plot(self, file: Path) -> None:
        """Writes precision-recall and ROC curves of all rows as one PNG."""
        curves = {row_of(name).title: m.curve() for name, m in self.measurements.items()}
        plot_curves(curves, file)

    @property
    def shown(self) -> Method:
        """The method whose mask pages show: the profile, or without it the first."""
        return min(self.methods, key=lambda method: method.name != "ours")

    def frames(self, most: int) -> Iterator[MeasuredFrame]:
        """At most so many frames, evenly spread over those that were measured."""
        first = self.shown
        order = [first, *(method for method in self.methods if method is not first)]
        threshold = self.measurements[first.name].result().threshold
        curves = {method.name: self.measurements[method.name].curve() for method in order}
        good = [index for index in self.indices if index not in self._failed]
        chosen = [good[i] for i in spread(len(good), most)]
        for done, index in enumerate(chosen, 1):
            truth = self.data[index]
            maps = {method.name: self.anomaly_map(method, truth) for method in order}
            edited = None
            if isinstance(first, Synthesis):
                _, edits = self.parts.edits(first.detector, truth.image)
                edited = to_pictures(edits[:1])[0]
            yield measured_frame(truth, maps, curves, threshold, edited)
            self.progress(done, len(chosen), "pictures of the page")

    def gallery(self, file: Path) -> None:
        """Writes a sheet of frames, evenly spaced over the data set, as the profile sees them."""
        ours = next((m for m in self.methods if m.name == "ours"), None)
        if not isinstance(ours, Synthesis):
            raise UserError("the gallery shows the profile: add --method ours")
        good = [index for index in self.indices if index not in self._failed]
        shown = [good[i] for i in spread(len(good), GALLERY_ROWS)]
        threshold = self.measurements["ours"].result().threshold
        rows = [self._panels(ours, self.data[index], threshold) for index in shown]
        top = max(float(row.raw.max()) for row in rows)
        gallery(rows, file, value_range=(0.0, top))

    @torch.inference_mode()
    def _panels(self, method: Synthesis, truth: LabelledImage, threshold: float) -> Panels:
        original, edits = self.parts.edits(method.detector, truth.image)
        extractor = self.parts.features(method.detector.profile.parts.features)
        features = extractor.extract(torch.cat([original, edits[:1]])).cpu().numpy()
        refined = self.anomaly_map(method, truth)
        return Panels(
            name=truth.name,
            image=truth.image,
            edited=to_pictures(edits[:1])[0],
            features_input=features[0],
            features_edit=features[1],
            raw=method.raw_map(truth),
            refined=refined,
            mask=refined >= threshold,
            anomaly=truth.anomaly,
            valid=truth.valid,
        )


def spread(total: int, count: int) -> list[int]:
    """At most ``count`` of ``total`` indices, evenly spread."""
    return [int(i) for i in np.linspace(0, total - 1, min(count, total)).round()]
