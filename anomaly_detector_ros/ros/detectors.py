"""The detectors of the node's cameras: one set of networks, and what is done when memory runs out.

No rclpy.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from anomaly_detector_ros.building import Parts, fewer_prompts
from anomaly_detector_ros.calibration.calibration import Calibration
from anomaly_detector_ros.detection import Detection
from anomaly_detector_ros.detector import Detector
from anomaly_detector_ros.errors import UserError, one_line
from anomaly_detector_ros.features.networks import OneByOneFeatures
from anomaly_detector_ros.lessons.journal import Lessons
from anomaly_detector_ros.profiles import Profile, load_profile
from anomaly_detector_ros.runtime.devices import choose_device
from anomaly_detector_ros.runtime.memory_ladder import Ladder, Level, is_out_of_memory, levels
from anomaly_detector_ros.synthesis.denoisers.base import OneByOneDenoiser

WARM_UP_SIZE = (272, 512)


@dataclass(frozen=True)
class Wanted:
    """What to load.

    Attributes:
        profile, models_dir, offline: see `Detector.from_profile`.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        calibrations: by camera, the file of its calibration; empty for the profile's.
    """

    profile: str
    device: str = "auto"
    models_dir: Path | None = None
    offline: bool = False
    calibrations: Mapping[str, str] = field(default_factory=lambda: {"": ""})


class Detectors:
    """A detector for each camera; those with the same calibration share one, all the networks.

    Where memory runs out the image is tried again with less demanding models, and the profile's
    own are tried again later; see `runtime.memory_ladder`. Not thread-safe: one thread at a time.

    Args:
        wanted: what to load, on the first use or by `load`.
        beat: called when loading, or another try after one that failed, has been got through.

    Attributes:
        loading: whether the models are being loaded.

    Raises:
        UserError: unknown device.
    """

    def __init__(self, wanted: Wanted, beat: Callable[[], None] = lambda: None) -> None:
        self._wanted, self._beat = wanted, beat
        self.loading = False
        self._device = choose_device(wanted.device)
        self._levels = levels(self._device)
        self._ladder = Ladder(len(self._levels))
        self._detectors: dict[str, Detector] = {}
        self._reason = ""
        self._profiles: list[Profile] = []
        self._lessons: Lessons | None = None

    def fresh(self) -> Detectors:
        """The same models, to be loaded anew; nothing is shared with these."""
        fresh = Detectors(self._wanted, self._beat)
        fresh._profiles, fresh._lessons = self._profiles, self._lessons
        return fresh

    def load(self) -> Detector:
        """Loads what is not loaded yet and runs the networks once, as the first run takes longer.

        Returns:
            One of the detectors, which differ in their calibration only.

        Raises:
            UserError: see `Detector.from_profile`.
        """
        if self.any is not None:
            return self.any
        self.loading = True
        try:
            while True:
                try:
                    return self._build()
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                    problem = _bare(error)
                if not self._step_down(problem):
                    raise problem
        finally:
            self._beat()
            self.loading = False

    @property
    def any(self) -> Detector | None:
        """One of the detectors; None before `load`."""
        return next(iter(self._detectors.values()), None)

    def detector(self, camera: str) -> Detector | None:
        """A camera's detector; None before `load`."""
        return self._detectors.get(camera)

    def calibration(self, camera: str) -> str:
        """The file of a camera's calibration; cameras with the same one share a detector."""
        return self._wanted.calibrations[camera]

    @property
    def level(self) -> Level:
        """What the models do without at present."""
        return self._levels[self._ladder.level]

    @property
    def problem(self) -> str:
        """What the models do without and why; empty if they are as the profile says."""
        return f"{self.level.title}: {self._reason}" if self._ladder.level else ""

    @property
    def lessons_file(self) -> str:
        """The file of lessons that the profile names; empty: none."""
        return next((str(each.lessons.get("file", "")) for each in self._profiles), "")

    def read_lessons(self, file: Path | None) -> Lessons:
        """The lessons of a file, or none yet; see `Parts.lessons`.

        Raises:
            UserError: they are not for all cameras' calibrations.
        """
        parts = Parts(self._device, offline=True)
        read = [parts.lessons(profile, file) for profile in self._profiles]
        if any(each.memory != read[0].memory for each in read):
            raise UserError(
                "the cameras' calibrations have different memories: give them one, see "
                "anomaly-detector calibrate --camera"
            )
        return read[0]

    def teach(self, lessons: Lessons) -> None:
        """Takes lessons into use for all cameras, also of models loaded later."""
        self._lessons = lessons
        for detector in set(self._detectors.values()):
            detector.teach(lessons)

    def recalibrate(self, calibration: Calibration, file: Path) -> None:
        """Takes a calibration into use for all cameras; models loaded later read its file."""
        calibrations = dict.fromkeys(self._wanted.calibrations, str(file))
        self._wanted = replace(self._wanted, calibrations=calibrations)
        for detector in set(self._detectors.values()):
            detector.recalibrate(calibration, file)

    def detect(
        self,
        cameras: Sequence[str],
        images: Sequence[np.ndarray],
        before: Sequence[Sequence[float]] | None = None,
    ) -> list[Detection | Exception]:
        """Finds the anomalies of images, uint8 RGB (H, W, 3), edited in one batch.

        In place of a detection comes the error, without its traceback, that an image by itself
        leads to.

        Args:
            cameras: of each image; they must share a detector.
            before: of each image, see `Detector.detect`.
        """
        levels = before or [()] * len(images)
        if self._ladder.up():
            self._detectors.clear()
        while True:
            try:
                self.load()
                found = self._detectors[cameras[0]].detect_batch(images, cameras, levels)
                return [_checked(detection) for detection in found]
            except Exception as error:
                problem = _bare(error)
            self._beat()
            if is_out_of_memory(problem):
                if self._step_down(problem):
                    continue
            elif len(images) > 1:
                return [
                    self.detect([camera], [image], [seen])[0]
                    for camera, image, seen in zip(cameras, images, levels, strict=True)
                ]
            return [problem] * len(images)

    def _step_down(self, problem: Exception) -> bool:
        if not self._ladder.down():
            return False
        self._reason = one_line(problem, 200)
        self._detectors.clear()
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return True

    def _build(self) -> Detector:
        wanted, level = self._wanted, self.level
        device = torch.device("cpu") if level.on_cpu else self._device
        # All networks anew: what lies in memory of the last level goes.
        parts = Parts(device, offline=wanted.offline)
        built: dict[str, Detector] = {}
        detectors, profiles = {}, []
        for camera, file in wanted.calibrations.items():
            if file not in built:
                overrides = {"calibration": {"file": file}} if file else None
                profile = load_profile(
                    wanted.profile, models_dir=wanted.models_dir, overrides=overrides
                )
                parts.fetch(profile)
                profiles.append(profile)
                # Lessons are the node's to read and to refuse.
                built[file] = _detector(replace(profile, lessons={}), parts, level)
                if self._lessons is not None:
                    built[file].teach(self._lessons)
            detectors[camera] = built[file]
        first = next(iter(built.values()))
        first.detect(np.full((*WARM_UP_SIZE, 3), 127, np.uint8))
        self._detectors, self._profiles = detectors, profiles
        return first


def _detector(profile: Profile, parts: Parts, level: Level) -> Detector:
    if not level.fewer_prompts:
        detector = Detector.from_parts(profile, parts)
    else:
        # Its calibration, fitted for the profile's own segmenter, is kept all the same.
        distance = parts.distance(profile)
        detector = Detector.from_parts(
            fewer_prompts(profile), parts, distance=distance, calibrated=False
        )
        detector.calibration = parts.calibration(profile)
    if level.one_by_one:
        detector.denoiser = OneByOneDenoiser(detector.denoiser)
        detector.features = OneByOneFeatures(detector.features)
    return detector


def _checked(detection: Detection) -> Detection | Exception:
    if np.isfinite(detection.heatmap).all():
        return detection
    return ValueError("the heatmap holds values that are not finite")


def _bare(error: Exception) -> Exception:
    """The error without tracebacks, whose frames would keep tensors in memory."""
    each: BaseException | None = error
    while each is not None:
        each.__traceback__ = None
        each = each.__cause__ or each.__context__
    return error
