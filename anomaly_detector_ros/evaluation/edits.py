"""A profile's edits measured by themselves, without the scores that are made of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from torch import Tensor

from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.distances.cosine import cosine_distance
from anomaly_detector_ros.distances.novelty import memory_distance
from anomaly_detector_ros.errors import UserError
from anomaly_detector_ros.evaluation.datasets.base import LabelledImage
from anomaly_detector_ros.evaluation.metrics.edits import (
    EditedFrame,
    EditMeasurement,
    EditQuality,
    gradient_energy,
)
from anomaly_detector_ros.evaluation.metrics.measures import plain
from anomaly_detector_ros.evaluation.run import GALLERY_ROWS, Evaluation, spread
from anomaly_detector_ros.evaluation.table.report import line, number, versions
from anomaly_detector_ros.features.preprocessing import resize
from anomaly_detector_ros.imaging.images import read_rgb
from anomaly_detector_ros.runtime.files import replace_file
from anomaly_detector_ros.runtime.tensors import to_pictures, to_tensor

ROWS = {
    "kid": "KID of edits of nominal frames to nominal frames",
    "kid_anomalous": "KID of edits of the labelled frames to nominal frames",
    "kid_unedited": "the same without the edit",
    "sharpness": "sharpness (gradient energy, edit over input, at the edit's size)",
    "frame_sharpness": "the same at the frame's size",
    "nominal_change": "change on nominal frames, mean",
    "nominal_change_p99": "change on nominal frames, 99th percentile",
    "anomaly_change": "change on anomalies",
    "beside_change": "change on nominal pixels of the labelled frames",
    "contrast": "contrast (anomalies over nominal frames)",
    "removal": "removal (share of anomalies that look nominal in the edit)",
    "unedited_nominal": "the same without the edit",
}
"""What each metric of `EditQuality` is called in tables."""

_PANELS = ("input", "edit", "change", "memory distance, input", "memory distance, edit")
_PANEL_INCHES = 3.2


@dataclass(frozen=True)
class EditReport:
    """What was found.

    Attributes:
        dataset: name of the labelled data set.
        profile: name of the profile whose edits they are.
        size: height and width of the edits.
        seed: of the memory and of resampling.
        quality: see `EditQuality`.
    """

    dataset: str
    profile: str
    size: tuple[int, int]
    seed: int
    quality: EditQuality

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Of each metric its title, its value and its 95% interval."""
        for name, title in ROWS.items():
            low, high = self.quality.intervals.get(name, (np.nan, np.nan))
            value = getattr(self.quality, name)
            yield title, number(value), f"{number(low)} to {number(high)}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        about = {"dataset": self.dataset, "profile": self.profile, "size": list(self.size)}
        quality = plain(self.quality.to_dict())
        return {**about, "seed": self.seed, "versions": versions(), "edits": quality}

    def to_markdown(self) -> str:
        """A table with a row for each metric."""
        found = self.quality
        lines = [
            line(("", self.profile, "95% interval")),
            line(["---"] * 3),
            *map(line, self.rows()),
        ]
        return "\n".join(lines) + (
            f"\n\n{found.labelled_frames} labelled frames of {self.dataset} with "
            f"{found.anomalies} anomalies, {found.nominal_frames} nominal frames, edits of "
            f"{self.size[0]}x{self.size[1]}. A place looks nominal up to a distance of "
            f"{found.nominal_distance:.3f} from the memory.\n"
        )


class EditEvaluation:
    """The edits of an evaluation's profile on its labelled images and on nominal ones held out.

    Args:
        evaluation: its nominal images are the memory that says what looks nominal.
        held_out: nominal images that neither the memory nor the denoiser knows.

    Raises:
        UserError: no nominal images for the memory, or weights that cannot be had.
    """

    def __init__(self, evaluation: Evaluation, held_out: Sequence[Path]) -> None:
        if not evaluation.nominal:
            raise UserError("what looks nominal is learnt from nominal images: give --train-root")
        self.evaluation, self.held_out, self.parts = evaluation, held_out, evaluation.parts
        profile = replace(evaluation.profile, segmenter={"name": "none"})
        if not profile.parts.distance.guides_edits:  # else it must be the profile's own
            profile = replace(profile, distance={"name": "cosine"}, calibration={})
        self.parts.fetch(profile)
        self.detector = Detector.from_parts(profile, self.parts, calibrated=False)

    def run(self) -> EditReport | None:
        """Measures them; None on all but the first of several processes, which make edits alone."""
        state, evaluation = PartialState(), self.evaluation
        total = len(self.held_out) + len(evaluation.indices)
        failed = set()
        for done, (name, image, _) in enumerate(self._images()):
            if done % state.num_processes == state.process_index:
                if self._tried(name, image) is None:
                    failed.add(done)
                evaluation.progress(done + 1, total, "edits and their features")
        with state.main_process_first():
            memory = self._memory()
        state.wait_for_everyone()
        if not state.is_main_process:
            return None
        measurement = EditMeasurement(memory, seed=evaluation.seed)
        for done, (name, image, truth) in enumerate(self._images()):
            # Where it failed here it has been counted.
            frame = None if done in failed else self._tried(name, image)
            if frame and truth:
                measurement.add_labelled(frame, truth.anomaly, truth.valid)
            elif frame:
                measurement.add_nominal(frame)
            evaluation.progress(done + 1, total, "edits measured")
        profile = self.detector.profile
        return EditReport(
            evaluation.data.name,
            profile.name,
            profile.parts.denoiser.size,
            evaluation.seed,
            measurement.result(),
        )

    def _images(self) -> Iterator[tuple[str, np.ndarray, LabelledImage | None]]:
        """All images with their names, nominal ones first; with their truth those that have one."""
        for file in self.held_out:
            yield f"'{file}'", read_rgb(file), None
        for index in self.evaluation.indices:
            truth = self.evaluation.data[index]
            yield f"'{truth.file}'", truth.image, truth

    def _tried(self, name: str, image: np.ndarray) -> EditedFrame | None:
        return self.evaluation.tally.tried(name, self._frame, image)

    def gallery(self, file: Path) -> None:
        """Writes a JPEG: some labelled frames with their first edits and what these changed."""
        # Not pyplot, which would look for a display and keep every figure.
        from matplotlib.figure import Figure

        memory = F.normalize(self._memory().float(), dim=1)
        indices = self.evaluation.indices
        truths = [self.evaluation.data[indices[i]] for i in spread(len(indices), GALLERY_ROWS)]
        height = _PANEL_INCHES * truths[0].image.shape[0] / truths[0].image.shape[1] + 0.1
        figure = Figure(
            figsize=(len(_PANELS) * _PANEL_INCHES, len(truths) * height + 0.5),
            layout="constrained",
        )
        rows = figure.subplots(len(truths), len(_PANELS), squeeze=False)
        for axes, truth in zip(rows, truths, strict=True):
            frame, edits = self._frame(truth.image), self._edits(truth.image)[1]
            looked_at = torch.stack([frame.image, frame.edits[0]])
            change = cosine_distance(frame.original[None], frame.edits[:1])
            panels = [truth.image, to_pictures(edits[:1])[0], change[0].numpy(force=True)]
            panels += list(memory_distance(looked_at, memory).numpy(force=True))
            whole = (0, truth.image.shape[1], truth.image.shape[0], 0)
            for where, panel in zip(axes, panels, strict=True):
                # Pictures in colour ignore the scale.
                where.imshow(panel, "inferno", vmin=0, vmax=1, extent=whole)
                where.set(xticks=[], yticks=[])
                if truth.anomaly.any():
                    where.contour(truth.anomaly, [0.5], colors="#56b4e9", linewidths=0.7)
            axes[0].set_xlabel(truth.name, loc="left", fontsize=8)
        for where, title in zip(rows[0], _PANELS, strict=True):
            where.set_title(title, fontsize=9)
        options = {"quality": 90}
        replace_file(
            file, lambda path: figure.savefig(path, format="jpeg", dpi=100, pil_kwargs=options)
        )

    def _memory(self) -> Tensor:
        settings = self.detector.profile.parts.features
        return self.evaluation.fits.vectors(settings).to(self.parts.device)

    def _edits(self, image: np.ndarray) -> tuple[Tensor, Tensor]:
        return self.parts.edits(self.detector, image)

    @torch.inference_mode()
    def _frame(self, image: np.ndarray) -> EditedFrame:
        """Features at the image's own size, from the cache if they are there."""
        original, edits = self._edits(image)
        given = to_tensor(image[None], self.parts.device)
        seen = resize(given, (edits.shape[2], edits.shape[3]))
        others = resize(torch.cat([original, edits]), image.shape[:2])
        maps = self.detector.features.extract(torch.cat([given, others]))
        sharpness = [
            (gradient_energy(of).mean() / gradient_energy(to)).item()
            for of, to in ((edits, seen), (others[1:], given))
        ]
        return EditedFrame(maps[0], maps[1], maps[2:], *sharpness)
